"""A reward function of the user's own, `module:function`."""

import dataclasses
import functools
import importlib
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from gvm_jax.rewards.verdicts import FAILURES, Grade, Status
from gvm_jax.rewards.verifiers.verifier import Verifier


@dataclasses.dataclass(frozen=True)
class Function(Verifier):
    """Calls `function(texts: list[str], references: list[str])`, which returns a sequence with a grade of each text.

    A grade is a score, or a pair of a score and the name of a `Status`. Scores are finite and from -1 to 1; above 0 a
    response is accepted, and its status is "correct". At 0 and below it is rejected: a negative score is learned from
    by the objectives that learn from rejected responses. "timeout" and "error" have the score 0 and count as failures
    of the verifier, as do exceptions and grades that break these rules. Texts come one at a time today, each as soon as
    it is sampled, so that one of them fails or misses the deadline alone; the function must take any number.

    Attributes:
        path: `module:function`; the module is found in the working folder or on Python's path.
    """

    path: str

    @property
    def contract(self) -> str:
        return (
            f"{self.path} must return a sequence with a grade of each text: a number from -1 to 1, accepted above 0, "
            "or a pair of it and a status (gvm_jax/rewards/README.md)"
        )

    def answer(self, text: str) -> str | None:
        return text

    def start(self) -> None:
        """Imports the function; raises RuntimeError if it cannot be imported or is no function."""
        _load(self.path)

    def check(self, answer: str, reference: str) -> Grade:
        """The grade that the function gives; raises RuntimeError if it raised or returned no grade of one text."""
        function = _load(self.path)
        try:
            returned = function([answer], [reference])
            grades = list(returned) if isinstance(returned, Iterable) else None
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.basename(frame.filename)}, line {frame.lineno}"
            raise RuntimeError(f"{self.path} raised {type(error).__name__}: {error} ({place})") from error
        if grades is None:
            raise RuntimeError(f"{self.path} returned {_show(returned)}, not a sequence of scores")
        if len(grades) != 1:
            raise RuntimeError(f"{self.path} returned {len(grades)} grades for 1 text: {_show(returned)}")
        return _grade(self.path, grades[0])


@functools.cache
def _load(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    where = f"rewards.function = {path!r}"
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise RuntimeError(
            f"{where}: the module {module!r} cannot be imported ({type(error).__name__}: {error}); it must be in the "
            f"working folder ({os.getcwd()}) or on PYTHONPATH"
        ) from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        file = getattr(sys.modules[module], "__file__", None) or "no file"
        raise RuntimeError(f"{where}: the module {module!r} ({file}) has no function {name!r}")
    return found


def _grade(path: str, grade: Any) -> Grade:
    shown = _show(grade)
    paired = isinstance(grade, tuple | list) and len(grade) == 2
    value, name = grade if paired else (grade, None)
    try:
        score = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not -1 <= score <= 1:  # not NaN either
        raise RuntimeError(f"{path} returned the grade {shown}; a score is a number from -1 to 1, accepted above 0")
    if not paired:
        return score, Status.CORRECT if score > 0 else Status.WRONG
    names = {status.value: status for status in Status}
    if name not in names:
        raise RuntimeError(f"{path} returned the grade {shown}; a status is one of {', '.join(names)}")
    status = names[name]
    if (score > 0) != (status is Status.CORRECT) or (score and status in FAILURES):
        raise RuntimeError(
            f"{path} returned the grade {shown}; 'correct' goes with a score above 0, and no other status does; "
            f"{' and '.join(repr(status.value) for status in FAILURES)} go with 0"
        )
    return score, status


def _show(value: Any) -> str:
    return repr(value)[:80]
