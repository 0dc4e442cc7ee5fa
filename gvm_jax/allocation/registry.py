"""Strategies by name: built-in ones, and `module:Class` of one's own."""

import difflib
import importlib
import os
import sys
from typing import Any

from gvm_jax.allocation.options import read_options
from gvm_jax.allocation.strategy import Strategy
from gvm_jax.config import ConfigError

# Imported when one is asked for: the strategies of other papers are plug-ins that nothing here depends on.
STRATEGIES = {
    "uniform": "gvm_jax.allocation.uniform:Uniform",
    "gvm": "gvm_jax.allocation.gvm:Gvm",
    "gvm_rates": "gvm_jax.allocation.gvm:GvmRates",
    "gvm_paper": "gvm_jax.strategies.gvm_paper:GvmPaper",
    "cures": "gvm_jax.strategies.cures:Cures",
    "reinforce_ada_est": "gvm_jax.strategies.reinforce_ada:ReinforceAdaEst",
    "reinforce_ada_seq": "gvm_jax.strategies.reinforce_ada:ReinforceAdaSeq",
    "vip": "gvm_jax.strategies.vip:Vip",
    "knapsack": "gvm_jax.strategies.knapsack:Knapsack",
    "cero": "gvm_jax.strategies.cero:Cero",
    "dapo": "gvm_jax.strategies.dapo:Dapo",
    "speed_rl": "gvm_jax.strategies.speed_rl:SpeedRl",
    "pods": "gvm_jax.strategies.pods:Pods",
}


def load_strategy(name: str) -> type[Strategy]:
    """The class that `config.allocation.strategy` names.

    Args:
        name: of `STRATEGIES`, or `module:Class`, whose module is in the working folder or on Python's path.

    Raises:
        ConfigError: the name is unknown, its module cannot be imported, or the class is no strategy.
    """
    where = f"allocation.strategy = {name!r}"
    module_name, colon, class_name = STRATEGIES.get(name, name).partition(":")
    if not colon:
        near = difflib.get_close_matches(name, STRATEGIES, n=1)
        raise ConfigError(
            f"{where}: unknown; use one of {', '.join(STRATEGIES)}, or module:Class of your own"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"{where}: the module {module_name!r} cannot be imported ({type(error).__name__}: {error}); it must be in "
            f"the working folder ({os.getcwd()}) or on PYTHONPATH"
        ) from error
    strategy = getattr(module, class_name, None)
    is_strategy = isinstance(strategy, type) and issubclass(strategy, Strategy)
    if not is_strategy or "__dataclass_fields__" not in vars(strategy):
        raise ConfigError(
            f"{where}: {class_name!r} of the module {module_name!r} must be a class that derives from "
            "gvm_jax.allocation.Strategy and is decorated with @dataclasses.dataclass(frozen=True)"
        )
    return strategy


def make_strategy(config: Any) -> Strategy:
    """The strategy that `config.strategy` names, with `config.options`.

    Args:
        config: the section `config.allocation`.

    Raises:
        ConfigError: the strategy cannot be loaded, an option is wrong, or the mode or the floor do not suit it.
    """
    strategy = load_strategy(config.strategy)
    if strategy.rounds and config.mode != "online":
        raise ConfigError(
            f"allocation.mode = {config.mode!r}: allocation.strategy = {config.strategy!r} samples in rounds of its "
            "own; set the mode to 'online'"
        )
    if config.min_samples < strategy.minimum_samples:
        raise ConfigError(
            f"allocation.min_samples = {config.min_samples}: must be >= {strategy.minimum_samples} for "
            f"allocation.strategy = {config.strategy!r}, whose formula has no meaning below"
        )
    return strategy(**read_options(strategy, config.get("options", {})))
