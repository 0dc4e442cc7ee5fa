"""The configuration of a run: every field with its default, what each may hold, and its form in `config.json`."""

from gvm_jax.config.defaults import METHODS, get_config, set_method
from gvm_jax.config.rules import (
    ABSENT,
    RULES,
    ConfigError,
    OnResume,
    Rule,
    diff,
    differences,
    flat,
    from_json,
    hint,
    nearest_field,
    shown,
    to_json,
    validate,
)

__all__ = [
    "ABSENT",
    "METHODS",
    "RULES",
    "ConfigError",
    "OnResume",
    "Rule",
    "diff",
    "differences",
    "flat",
    "from_json",
    "get_config",
    "hint",
    "nearest_field",
    "set_method",
    "shown",
    "to_json",
    "validate",
]
