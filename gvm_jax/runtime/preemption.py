"""Stopping a run between two of its pieces of work, so that it saves before it exits."""

import os
import signal
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

# Of a run that was told to stop, saved, and can be resumed by the same command: the shell's code for a
# process ended by SIGTERM. Not 0, since a supervisor must not take an interrupted run for a finished one.
EXIT_CODE = 143


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
    """

    def __init__(self) -> None:
        self._requested = False
        self._interrupted = False
        self._former: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignal":
        """Installs the handlers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Restores the former handlers."""
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._requested = True
        self._interrupted |= number == signal.SIGINT
        # Not print or logging: these may be what the signal interrupted, and neither can be re-entered.
        hint = " (Ctrl-C again: at once, without saving)" if number == signal.SIGINT else ""
        os.write(2, f"\n{signal.Signals(number).name}: saving and stopping soon{hint}\n".encode())

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._requested

    def check(self) -> None:
        """Raises `Preempted` where any process was asked to stop.

        With several processes this is a collective: all of them call it at the same points, and all of them
        stop at the same one, since a process that goes on alone would wait for the others for ever.
        """
        requested = self._requested
        if jax.process_count() > 1:
            requested = bool(multihost_utils.process_allgather(np.asarray(requested)).any())
        if requested:
            raise Preempted("stopped on request; the same command resumes the run")
