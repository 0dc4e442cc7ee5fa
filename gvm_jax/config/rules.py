"""What a field of the config may hold, and what a resumed run may change of it."""

import enum
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from gvm_jax.errors import InputError


class ConfigError(InputError):
    """A config that cannot be run; the message names each field, its value and the values that are allowed."""


class OnResume(enum.Enum):
    """Whether a field may change when a run is resumed, by the part of a run that it decides."""

    KEPT = "the algorithm"  # may not change
    FREE = "the run's length, its record and its limits"
    ROUNDING = "how a step is computed"  # float results may differ in their last bits, and so may later steps
    CONTENT = "where an input is found"  # its content may not change: checkpoints hold a fingerprint of it


class Rule(NamedTuple):
    """The values that a field may hold: in words, as a test, and as a list where there is one."""

    allowed: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


class Field(NamedTuple):
    """The declaration of a field."""

    default: Any
    rule: Rule
    help: str
    on_resume: OnResume = OnResume.KEPT

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        return self.rule.allowed

    def holds(self, value: Any) -> bool:
        """Whether the field may have this value."""
        return self.rule.holds(value)


def integer(at_least: int, at_most: float = math.inf) -> Rule:
    """An integer within bounds."""
    allowed = f"an integer >= {at_least}" + (f" and <= {at_most}" if at_most < math.inf else "")
    # bool is an int in Python, but `steps = True` is a mistake.
    return Rule(allowed, lambda value: type(value) is int and at_least <= value <= at_most)


def number(above=-math.inf, at_least=-math.inf, below=math.inf, at_most=math.inf) -> Rule:
    """A finite number within bounds."""
    bounds = ((">", above), (">=", at_least), ("<", below), ("<=", at_most))
    allowed = "a number " + " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
    return Rule(
        allowed, lambda value: type(value) in (int, float) and above < value < below and at_least <= value <= at_most
    )


def choice(*choices: str) -> Rule:
    """One of some texts."""
    return Rule(" or ".join(map(repr, choices)), lambda value: value in choices, choices)


def text(allowed: str = "a text, or '' for none", holds: Callable[[str], bool] = lambda _: True) -> Rule:
    """A text that passes a test."""
    return Rule(allowed, lambda value: isinstance(value, str) and holds(value))


def texts(allowed: str, holds: Callable[[str], bool] = bool) -> Rule:
    """A tuple of texts that pass a test and are not empty."""
    passes = lambda item: isinstance(item, str) and item and holds(item)  # noqa: E731
    return Rule(allowed, lambda value: isinstance(value, tuple) and all(map(passes, value)))


def is_regular_expression(pattern: str) -> bool:
    """Whether `re` can compile a text that is not empty."""
    try:
        re.compile(pattern)
    except re.error:
        return False
    return bool(pattern)
