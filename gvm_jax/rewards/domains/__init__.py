"""The domains by name: one file each, one line of the registry each."""

import importlib
import re

from gvm_jax.rewards.domains.domain import Domain, Limits
from gvm_jax.rewards.domains.function import Function

# Their classes, imported when one is asked for: a worker loads what its own domain needs.
DOMAINS = {
    "exact": "gvm_jax.rewards.domains.exact:Exact",
    "math": "gvm_jax.rewards.domains.mathematics:Mathematics",
    "math_verify": "gvm_jax.rewards.domains.math_verify_alone:MathVerifyAlone",
    "python_tests": "gvm_jax.rewards.domains.python_tests:PythonTests",
}


def is_path(function: str) -> bool:
    """Whether this is spelled as `module:function`."""
    return re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", function) is not None


def make_domain(function: str, limits: Limits) -> Domain:
    """The domain that `rewards.function` names.

    Raises:
        ValueError: there is no such domain.
    """
    if is_path(function):
        return Function(limits, function)
    if function not in DOMAINS:
        raise ValueError(f"rewards.function = {function!r}: must be one of {', '.join(DOMAINS)}, or module:function")
    module, _, name = DOMAINS[function].partition(":")
    return getattr(importlib.import_module(module), name)(limits)


__all__ = ["DOMAINS", "Domain", "Limits", "is_path", "make_domain"]
