"""Runs in a worker process: its preparation and the guard around each check. Nothing here may import jax."""

import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ORPHAN_SECONDS = 10.0  # a worker this late behind its deadline has lost its parent, and ends
_problem = ""


def start(prepare: Callable[[], object], memory_mib: int) -> None:
    """Prepares a fresh process and then limits its memory to what it holds plus `memory_mib`.

    An exception of `prepare` is kept for `problem`: pebble would end the process and hide the message.
    """
    global _problem
    try:
        prepare()
    except Exception as error:
        _problem = _message(error)
    if sys.platform == "linux":
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit, hard_limit = mapped + memory_mib * 2**20, resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard_limit == resource.RLIM_INFINITY or limit < hard_limit:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard_limit))


def problem() -> str:
    """The reason why this worker cannot check anything, "" if it can."""
    return _problem


def guarded(check: Callable[..., Any], texts: tuple[str, ...], deadline_seconds: float) -> Any:
    """`check(*texts)` in a worker that outlives neither its parent nor an exception that cannot be pickled.

    Raises:
        RuntimeError: the check raised, or the worker is not ready.
    """
    if _problem:
        raise RuntimeError(_problem)
    signal.setitimer(signal.ITIMER_REAL, deadline_seconds + ORPHAN_SECONDS)  # SIGALRM then ends the process
    try:
        return check(*texts)
    except Exception as error:
        raise RuntimeError(_message(error)) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _message(error: Exception) -> str:
    """The message of an error for a person; that of our own RuntimeErrors needs no class before it."""
    return f"{error}" if type(error) is RuntimeError else f"{type(error).__name__}: {error}"
