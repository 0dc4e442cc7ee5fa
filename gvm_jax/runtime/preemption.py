"""Stopping a run between two of its pieces of work, so that it saves before it exits."""

import os
import signal
import threading
import time
from types import FrameType

import jax

from gvm_jax.runtime import collectives

# Of a run that was told to stop, saved, and can be resumed by the same command: the shell's code for a
# process ended by SIGTERM. Not 0, since a supervisor must not take an interrupted run for a finished one.
EXIT_CODE = 143

# How long a run that has nothing to lose is given to look at the request itself.
_PATIENCE_SECONDS = 5.0

# How often a process asks whether another one was told to stop.
_QUESTION_SECONDS = 1.0


class Preempted(Exception):  # noqa: N818 - a request, not an error
    """The run was asked to stop: save, then exit with `EXIT_CODE`."""


class StopSignal:
    """Turns SIGTERM, and the first Ctrl-C, into a request that the run looks at where it can stop.

    A second Ctrl-C raises KeyboardInterrupt at once. Use it as a context manager, in the main thread, after
    `jax.distributed.initialize`, which installs a SIGTERM handler of its own. The former handlers come back
    at the end.

        with StopSignal() as stop:
            for ...:
                stop.check()

    Python runs a handler between two of its own instructions, and the compilation of a large program is one of them
    that takes minutes. So a process that is alone and has `nothing_to_lose` is ended with `EXIT_CODE` if it has not
    stopped by itself some seconds after the request.
    """

    nothing_to_lose = True  # until the run sets it to False, having done what is not saved

    def __init__(self) -> None:
        self._requested = False
        self._interrupted = False
        self._former: dict[signal.Signals, object] = {}
        self._left = threading.Event()
        self._next_question = 0.0  # to the other processes

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
        """Looks at the signals' numbers, which arrive here even while the main thread is not in Python."""
        while arrived := os.read(self._read, 1):
            if arrived[0] not in (signal.SIGTERM, signal.SIGINT) or self._left.wait(_PATIENCE_SECONDS):
                continue
            if self.nothing_to_lose and jax.process_count() == 1:
                os.write(2, b"stopped at once, with nothing to save; the same command begins where this one did\n")
                os._exit(EXIT_CODE)
        os.close(self._read)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._requested = True
        self._interrupted |= number == signal.SIGINT
        # Not print or logging: these may be what the signal interrupted, and neither can be re-entered.
        soon = "stopping soon, with nothing to save" if self.nothing_to_lose else "saving and stopping soon"
        hint = " (Ctrl-C again: at once, without saving)" if number == signal.SIGINT else ""
        os.write(2, f"\n{signal.Signals(number).name}: {soon}{hint}\n".encode())

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._requested

    def check(self) -> None:
        """Raises `Preempted` where this process or, as far as is known here, another one was asked to stop.

        Processes hear of it at different points of their work; whoever waits for others afterwards asks them first.
        """
        if self._requested:
            collectives.announce("stop")
        elif jax.process_count() > 1 and time.monotonic() > self._next_question:
            self._next_question = time.monotonic() + _QUESTION_SECONDS
            self._requested = collectives.announced("stop")
        if self._requested:
            next_time = "begins where this one did" if self.nothing_to_lose else "resumes the run"
            raise Preempted(f"stopped on request; the same command {next_time}")
