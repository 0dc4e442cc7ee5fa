"""Configs from files: those of `configs/`, and a user's own."""

import difflib
import functools
import importlib.util
import pathlib
import re
import traceback
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from gvm_jax.config.defaults import lock
from gvm_jax.config.rules import ConfigError
from gvm_jax.config.validation import hint

SHIPPED = pathlib.Path(__file__).parent.parent / "configs"  # the checkout's configs/; a copy in an installed package


def load_config(given: str, fields: Mapping[str, Any] | None = None) -> ConfigDict:
    """The config of a file, locked.

    Args:
      given: FILE or FILE:ARGUMENT, as --config is given; files of configs/ are found from every folder.
      fields: values of fields by dotted name, in place of the file's.

    Raises:
      ConfigError: no such file or field, a value of a wrong type, or the file raises an error, whose line is named.
    """
    path, colon, argument = given.partition(":")
    file = pathlib.Path(path)
    if not file.is_file() and not (file := SHIPPED / path.removeprefix("configs/")).is_file():
        known = [f"configs/{shipped.name}" for shipped in SHIPPED.glob("*.py")]
        near = difflib.get_close_matches(path, [*known, *map(str, pathlib.Path(path).parent.glob("*.py"))], n=1)
        advice = f"did you mean {near[0]}?" if near else "name one of configs/ or one of your own"
        raise ConfigError(f"--config={given}: no such file; {advice}")
    try:
        spec = importlib.util.spec_from_file_location("config_file", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError("the file defines no get_config(), which returns the config")
        loaded = module.get_config(*([argument] if colon else []))
        if not isinstance(loaded, ConfigDict):
            raise ConfigError(f"get_config() returns {loaded!r}; it must return the config")
    except SyntaxError as error:
        raise ConfigError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except ConfigError as error:
        raise ConfigError(f"--config={given}: {error}") from error
    except Exception as error:  # the file is run here, so this may be anything
        inside = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        if inside:
            problem = f"{path}, line {inside[-1].lineno}: {_reason(error, inside[-1].line or '')}"
        else:  # the call itself raised it
            problem = f"--config={given}: its get_config() does not fit the argument {argument!r}; {error}"
        raise ConfigError(problem) from error
    lock(loaded)
    for name, value in (fields or {}).items():
        _set(loaded, name, value)
    return loaded


def _set(config: ConfigDict, name: str, value: Any) -> None:
    *sections, last = name.split(".")
    try:
        functools.reduce(getattr, sections, config)[last] = value
    except (AttributeError, KeyError) as error:
        raise ConfigError(f"{name}: no such field; {hint(name)}") from error
    except TypeError as error:
        raise ConfigError(f"{name} = {value!r}: {error}") from error


def _reason(error: Exception, line: str) -> str:
    """The cause of an error that a line of a config file raised."""
    while error.args and isinstance(error.args[0], Exception):  # ml_collections puts one error into another
        error = error.args[0]
    reason = " ".join(str(error.args[0] if error.args else error).split())
    key = re.match(r"""(?:Key )?["'](\w+)["']""", reason)
    if key and isinstance(error, AttributeError | KeyError):
        written = re.search(rf"\.((?:\w+\.)*{key[1]})\b", line)
        name = written[1] if written else key[1]
        return f"the config has no field {name}; {hint(name)}"
    return f"{type(error).__name__}: {reason}"
