"""Worker processes that run one check each at a time under a deadline, and are replaced when they miss it."""

import contextlib
import multiprocessing.context
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any

from pebble import ProcessPool

from gvm_jax.rewards import worker
from gvm_jax.rewards.verdicts import VerifierFailure, VerifierRefused

_INSPECTION_SECONDS = 1.0  # how often a waiting caller looks whether the pool is alive
_start_lock = threading.Lock()


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keeps a process spawned meanwhile from importing this one's `__main__`: entry points import jax."""
    main = sys.modules["__main__"]
    spec, file = main.__spec__, main.__dict__.pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        main.__spec__ = spec
        if file is not None:
            main.__file__ = file


class _WorkerProcess(multiprocessing.context.SpawnProcess):
    """Spawned, because the parent has the threads of JAX; ended by its parent alone."""

    def start(self) -> None:
        # Signals to the process group are the parent's to handle; a child has its parent's mask from birth.
        with _start_lock, _main_module_hidden():
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
            try:
                super().start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def terminate(self) -> None:
        # SIGTERM is blocked, and pebble would wait 3 s for its effect, with the pool's lock: no other worker
        # could take up a check or deliver a result meanwhile.
        self.kill()


class _WorkerContext(multiprocessing.context.SpawnContext):
    Process = _WorkerProcess


def _start_quiet_tracker() -> None:
    """Starts multiprocessing's resource tracker without its warning of what it removes.

    A run that is ended at once, by Ctrl-C say, leaves the pool's semaphores to it; that is no news to a person.
    """
    former = sys.warnoptions[:]
    sys.warnoptions.append("ignore:resource_tracker")  # handed on to the process
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions[:] = former


class WorkerPool:
    """Runs checks in worker processes; for use from one thread.

    A check's deadline counts from when a worker takes it up: neither the queue nor a worker's start is in it.

    Args:
        workers: number of processes.
        deadline_seconds: time for one check.
        memory_mib: what a worker may allocate beyond what it holds when it is ready (Linux).
        prepare: called first in each of them; raises where it can check nothing.

    Raises:
        VerifierFailure: workers cannot start, or `prepare` raised.
    """

    def __init__(self, workers: int, deadline_seconds: float, memory_mib: int, prepare: Callable[[], object]):
        self._workers = workers
        self._deadline_seconds = deadline_seconds
        self._start_arguments = prepare, memory_mib
        self._unfinished: dict[Future, tuple[Callable[..., Any], tuple[str, ...]]] = {}
        self._closed = False
        self._start()

    def run(self, check: Callable[..., Any], *texts: str) -> Future:
        """Queues `check(*texts)`.

        Returns:
            Its result to come, for `wait`; a TimeoutError when the check missed its deadline, another
            exception when it raised or its worker died.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError("the grader is closed")
        self._replace_if_broken()
        outcome: Future = Future()
        self._unfinished[outcome] = (check, texts)
        self._schedule(outcome)
        return outcome

    def wait(self, outcomes: Sequence[Future], check_interrupt: Callable[[], None] = lambda: None) -> None:
        """Returns when all outcomes are there; `check_interrupt` is called every second and may raise to give up."""
        while wait(outcomes, timeout=_INSPECTION_SECONDS).not_done:
            check_interrupt()
            self._replace_if_broken()

    def close(self) -> None:
        """Ends the workers; checks under way are cancelled."""
        self._closed = True
        self._stop()
        for outcome in list(self._unfinished):
            outcome.cancel()
            outcome.set_running_or_notify_cancel()  # without it `wait` goes on waiting

    def _start(self) -> None:
        _start_quiet_tracker()
        self._pool = ProcessPool(
            self._workers, initializer=worker.start, initargs=self._start_arguments, context=_WorkerContext()
        )
        try:
            problem = self._pool.schedule(worker.problem).result()  # taken up by the first worker that is ready
        except Exception as error:
            self._stop()
            raise VerifierFailure(
                "grader workers cannot start; their own message is above, or in what "
                "`python -c 'from gvm_jax.rewards import worker_pool'` prints"
            ) from error
        if problem:
            self._stop()
            raise VerifierRefused(problem)

    def _stop(self) -> None:
        self._pool.stop()
        self._pool.join()

    def _replace_if_broken(self) -> None:
        # pebble gives a pool up when a worker dies while none has a check under way (killed from outside).
        if not self._closed and not self._pool.active:
            self._stop()
            self._start()
            for outcome in list(self._unfinished):
                self._schedule(outcome)

    def _schedule(self, outcome: Future) -> None:
        def finish(task: Future) -> None:
            error = task.exception()
            if isinstance(error, BrokenProcessPool):
                return  # the pool that follows runs it again
            del self._unfinished[outcome]
            if error is None:
                outcome.set_result(task.result())
            else:
                outcome.set_exception(error)

        arguments = (*self._unfinished[outcome], self._deadline_seconds)
        task = self._pool.schedule(worker.guarded, arguments, timeout=self._deadline_seconds)
        task.add_done_callback(finish)
