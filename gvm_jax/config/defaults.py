"""The default config, and what the config files of `configs/` have in common."""

import difflib

from ml_collections import ConfigDict

from gvm_jax.config.fields import OPTIONS, SECTIONS
from gvm_jax.config.rules import ConfigError

METHODS = {  # argument of a config file -> (objective.algorithm, allocation.strategy)
    "raft": ("raft_pp", "uniform"),
    "gvm_raft": ("raft_pp", "gvm"),
    "grpo": ("grpo", "uniform"),
    "gvm_grpo": ("grpo", "gvm"),
}


def get_config() -> ConfigDict:
    """The default of every field."""
    config = {section: {name: field.default for name, field in fields.items()} for section, fields in SECTIONS.items()}
    config["allocation"]["options"] = {}
    return lock(ConfigDict(config.pop("") | config))


def lock(config: ConfigDict) -> ConfigDict:
    """Locks a config against new fields, but for the options of its strategy."""
    config.lock()
    section, _, options = OPTIONS.partition(".")
    if options in config.get(section, {}):
        config[section][options].unlock()
    return config


def set_method(config: ConfigDict, method: str) -> None:
    """Sets the algorithm and the strategy that an argument such as `configs/quickstart.py:raft` names."""
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"argument {method!r} of the config file: must be one of {', '.join(METHODS)}{meant}")
    config.objective.algorithm, config.allocation.strategy = METHODS[method]
