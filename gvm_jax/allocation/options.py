"""Options of a strategy: the fields of its dataclass, set as `config.allocation.options.NAME`."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from gvm_jax.config import ConfigError, Rule, from_text, number

_RULES = {
    bool: Rule("True or False", lambda value: type(value) is bool),
    int: Rule("an integer", lambda value: type(value) is int),
    float: Rule("a number", number().holds),
    str: Rule("a text", lambda value: isinstance(value, str)),
}


def option(default: Any, rule: Rule) -> Any:
    """A field of a strategy with a rule; a plain default, as in `power: float = 0.5`, allows all values of its type."""
    return dataclasses.field(default=default, metadata={"rule": rule})


def check_options(strategy: Any) -> None:
    """Raises ConfigError for an option that breaks its rule."""
    for field in dataclasses.fields(strategy):
        rule, value = field.metadata.get("rule", _RULES.get(type(field.default))), getattr(strategy, field.name)
        if rule and not rule.holds(value):
            raise ConfigError(f"allocation.options.{field.name} = {value!r}: must be {rule.allowed}")


def read_options(strategy: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with values of their defaults' types, where a text or an integer stands for one.

    Raises:
        ConfigError: the strategy has no such option.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(strategy)}
    for name in options:
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            raise ConfigError(
                f"allocation.options.{name}: {strategy.__name__} has "
                + (f"no such option; its options are {', '.join(defaults)}" if defaults else "no options")
                + (f"; did you mean {near[0]}?" if near else "")
            )
    return {
        name: from_text(str(value), defaults[name]) if type(value) in (str, int) else value
        for name, value in options.items()
    }
