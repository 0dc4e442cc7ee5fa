"""The configuration of a run: the declarations of its fields, the default config, checks, and `config.json`."""

from gvm_jax.config.defaults import METHODS, get_config, lock, set_method
from gvm_jax.config.fields import FIELDS, OPTIONS
from gvm_jax.config.files import load_config
from gvm_jax.config.formats import diff, differences, flat, from_json, from_text, shown, to_json
from gvm_jax.config.rules import ConfigError, OnResume, Rule, choice, integer, number, text
from gvm_jax.config.validation import hint, is_option, nearest_field, on_resume, problems, validate

__all__ = [
    "FIELDS", "METHODS", "OPTIONS", "ConfigError", "OnResume", "Rule", "choice", "diff", "differences", "flat",
    "from_json", "from_text", "get_config", "hint", "integer", "is_option", "load_config", "lock", "nearest_field",
    "number", "on_resume", "problems", "set_method", "shown", "text", "to_json", "validate",
]  # fmt: skip
