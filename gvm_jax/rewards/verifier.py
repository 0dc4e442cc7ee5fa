"""What runs in a grader worker: math-verify on one pair of texts. Nothing here may import jax."""

import itertools
import logging
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

_GOLD = (LatexExtractionConfig(),)
_ANSWER = (ExprExtractionConfig(), LatexExtractionConfig())

MEMORY_BYTES = 2**30  # what a worker may allocate beyond what it holds when it is ready
ORPHAN_SECONDS = 10.0  # a worker this late behind its deadline has lost its parent, and ends


def equivalent(answer: str, gold: str) -> bool:
    r"""Whether math-verify accepts `\boxed{answer}` for `\boxed{gold}`.

    The call of the paper's code (arXiv 2505.02391), whose score, 1 or 0, is accepted above 0.5. The
    timeouts of math-verify itself are off, because the process has the deadline.

    Raises:
        Exception: whatever the comparison of some reading of the two raised, when no reading was accepted.
    """
    failure = None
    for pair in itertools.product(_read(gold, _GOLD), _read(answer, _ANSWER)):
        try:
            if verify(*pair, timeout_seconds=None, raise_on_error=True):
                return True
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure
    return False


def parses(gold: str) -> bool:
    r"""Whether math-verify reads `\boxed{gold}` as mathematics, rather than as mere characters to compare."""
    return any(not isinstance(reading, str) for reading in _read(gold, _GOLD))


def _read(text: str, targets: tuple) -> list:
    return parse(rf"\boxed{{{text}}}", targets, parsing_timeout=None, raise_on_error=True)


def start_worker() -> None:
    """Makes a fresh process ready: quiet, warm and with a memory limit.

    Raises:
        RuntimeError: math-verify does not work here; with a broken parser it rejects every answer.
    """
    for library in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(library).setLevel(logging.ERROR)
    if not equivalent(r"\frac{1}{2}", "0.50"):
        raise RuntimeError(r"math-verify does not accept \frac{1}{2} for 0.50: reinstall math-verify, antlr4")
    if sys.platform == "linux":
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit, hard_limit = mapped + MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard_limit == resource.RLIM_INFINITY or limit < hard_limit:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard_limit))


def guarded(check: Callable[..., bool], texts: tuple[str, ...], deadline_seconds: float) -> bool:
    """`check(*texts)` in a worker that outlives neither its parent nor an exception that cannot be pickled.

    Raises:
        RuntimeError: the check raised.
    """
    signal.setitimer(signal.ITIMER_REAL, deadline_seconds + ORPHAN_SECONDS)  # SIGALRM then ends the process
    try:
        return check(*texts)
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
