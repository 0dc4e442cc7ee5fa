"""A config as flat fields, as the difference to another one, and as the text of `config.json`."""

import json
from ast import literal_eval
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from gvm_jax.config.defaults import lock

ABSENT = "(absent)"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a nested config by dotted name."""
    fields = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping | ConfigDict)
        fields |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return fields


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields that differ between two configs, as (old, new) by name; `ABSENT` where one lacks it."""
    old, new = flat(old), flat(new)
    pairs = {name: (old.get(name, ABSENT), new.get(name, ABSENT)) for name in sorted(old.keys() | new.keys())}
    return {name: (before, after) for name, (before, after) in pairs.items() if before != after}


def shown(name: str, before: Any, after: Any) -> str:
    """A difference as "field: old -> new"."""
    before, after = (value if value is ABSENT else repr(value) for value in (before, after))
    return f"{name}: {before} -> {after}"


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`differences`, each as it is `shown`."""
    return [shown(name, *values) for name, values in differences(old, new).items()]


def to_json(config: ConfigDict) -> str:
    """The config as JSON text; equal configs give equal texts."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> ConfigDict:
    """The locked config that `to_json` wrote. JSON's arrays become the tuples they were.

    Raises:
      ValueError: for another text.
    """

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tuples(item) for name, item in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON object is wanted, found {text[:40]!r}")
    return lock(ConfigDict(tuples(fields)))


def from_text(text: str, like: Any = None) -> Any:
    """The value that a text of the command line stands for; the text itself where it is of another type.

    Args:
      text: such as "3", "1e-3", "true", "('a', 'b')" or "a".
      like: a value of the wanted type; None for any type.
    """
    if isinstance(like, str):
        return text
    try:
        value = literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        value = text
    if isinstance(like, float) and type(value) is int:
        return float(value)
    if isinstance(like, tuple):
        return tuple(value) if isinstance(value, list | tuple) else (text,)
    return value
