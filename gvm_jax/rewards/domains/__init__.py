"""The domains by name: one file each, one line of the registry each."""

import importlib

from gvm_jax.rewards.domains.domain import Domain

# Their classes, imported when one is asked for: a worker loads what its own domain needs.
DOMAINS = {
    "exact": "gvm_jax.rewards.domains.exact:Exact",
    "math": "gvm_jax.rewards.domains.math:Math",
}


def make_domain(function: str) -> Domain:
    """The domain that `rewards.function` names.

    Raises:
        ValueError: there is no such domain.
    """
    if function not in DOMAINS:
        raise ValueError(f"rewards.function = {function!r}: must be one of {', '.join(DOMAINS)}")
    module, _, name = DOMAINS[function].partition(":")
    return getattr(importlib.import_module(module), name)()


__all__ = ["DOMAINS", "Domain", "make_domain"]
