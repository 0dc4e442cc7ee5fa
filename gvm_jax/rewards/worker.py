"""What runs in a grader worker around the checks of a domain. Nothing here may import jax."""

import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ORPHAN_SECONDS = 10.0  # a worker this late behind its deadline has lost its parent, and ends
_problem = ""


def start(prepare: Callable[[], object], memory_mib: int) -> None:
    """Makes a fresh process ready: `prepare()`, then a limit of what it may allocate beyond what it holds then.

    What `prepare` raises is kept for `problem`: pebble would end the process and hide the message.
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
    """Why this worker cannot check; "" = it can."""
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
    """What a person reads of it: a RuntimeError of ours says all there is."""
    return f"{error}" if type(error) is RuntimeError else f"{type(error).__name__}: {error}"
