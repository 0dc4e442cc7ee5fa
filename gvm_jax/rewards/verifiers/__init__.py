"""Verifiers by name. Each is a class in a file of its own, here or in another package, and a line of `VERIFIERS`."""

import importlib
import re

from gvm_jax.rewards.verifiers.function import Function
from gvm_jax.rewards.verifiers.verifier import Limits, Verifier

# Imported when asked for: a worker process loads its own verifier alone.
VERIFIERS = {
    "exact": "gvm_jax.rewards.verifiers.exact:Exact",
    "math": "gvm_jax.rewards.verifiers.mathematics:Mathematics",
    "math_verify": "gvm_jax.rewards.verifiers.math_verify_alone:MathVerifyAlone",
    "python_tests": "gvm_jax.sandbox.python_tests:PythonTests",
}


def is_path(function: str) -> bool:
    """Whether this is spelled as `module:function`."""
    return re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", function) is not None


def make_verifier(function: str, limits: Limits) -> Verifier:
    """The verifier that `rewards.function` names.

    Raises:
        ValueError: there is no such verifier.
    """
    if is_path(function):
        return Function(limits, function)
    if function not in VERIFIERS:
        raise ValueError(f"rewards.function = {function!r}: must be one of {', '.join(VERIFIERS)}, or module:function")
    module, _, name = VERIFIERS[function].partition(":")
    return getattr(importlib.import_module(module), name)(limits)


__all__ = ["VERIFIERS", "Limits", "Verifier", "is_path", "make_verifier"]
