"""Stopping a run between two of its pieces of work, so that it saves before it exits."""

import os
import signal
import threading
from types import FrameType

from gvm_jax.runtime import watch

# Exit code of a run that was asked to stop, has saved, and is resumed by the same command: the shell's code for a
# process ended by SIGTERM. Not 0, since a supervisor must not take an interrupted run for a finished one.
EXIT_CODE = 143

# Time for a run with nothing to lose to notice the request itself.
_PATIENCE_SECONDS = 5.0


class Preempted(Exception):  # noqa: N818 - a request, not an error
    """The run was asked to stop: save, then exit with `EXIT_CODE`."""


class StopSignal:
    """Turns SIGTERM, and the first Ctrl-C, into a request that the run checks where it can stop.

    A second Ctrl-C raises KeyboardInterrupt at once. Use it as a context manager, in the main thread, after
    `jax.distributed.initialize`, which installs a SIGTERM handler of its own. The former handlers come back
    at the end.

        with StopSignal() as stop:
            for ...:
                stop.check()

    Python runs a handler only between two of its instructions, and compiling a large program is one instruction that
    takes minutes. So a run of one process with `nothing_to_lose` is ended with `EXIT_CODE` if it has not stopped by
    itself a few seconds after the request.

    Attributes:
      requested: whether a stop was requested.
      nothing_to_lose: True until the run sets it to False, when it has done work that is not saved.
    """

    nothing_to_lose = True

    def __init__(self) -> None:
        self.requested = False
        self._interrupted = False
        self._former: dict[signal.Signals, object] = {}
        self._left = threading.Event()

    def __enter__(self) -> "StopSignal":
        """Installs the handlers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._former[number] = signal.signal(number, self._handle)
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._former_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="stop_signal", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Restores the former handlers."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._former_wakeup)
        self._left.set()
        os.close(self._write)

    def _watch(self) -> None:
        """Reads the signals' numbers, which arrive in the pipe even while the main thread is in native code."""
        while arrived := os.read(self._read, 1):
            if arrived[0] not in (signal.SIGTERM, signal.SIGINT) or self._left.wait(_PATIENCE_SECONDS):
                continue
            if self.nothing_to_lose and watch.current is None:
                os.write(2, b"stopped at once, with nothing to save; the same command begins where this one did\n")
                os._exit(EXIT_CODE)
        os.close(self._read)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self.requested = True
        self._interrupted |= number == signal.SIGINT
        # Not print or logging: the signal may have interrupted either, and neither can be re-entered.
        soon = "stopping soon, with nothing to save" if self.nothing_to_lose else "saving and stopping soon"
        hint = " (Ctrl-C again: at once, without saving)" if number == signal.SIGINT else ""
        os.write(2, f"\n{signal.Signals(number).name}: {soon}{hint}\n".encode())

    def check(self) -> None:
        """Raises `Preempted` if this process or, as far as it is known here, another one was asked to stop.

        Processes learn of it at different points of their work, so the caller agrees with the others before it waits
        for them (`collectives.any_process`).
        """
        if watch.current is not None:
            if self.requested:
                watch.current.announce_stop()
            self.requested |= watch.current.stop_announced()
        if self.requested:
            next_time = "begins where this one did" if self.nothing_to_lose else "resumes the run"
            raise Preempted(f"stopped on request; the same command {next_time}")
