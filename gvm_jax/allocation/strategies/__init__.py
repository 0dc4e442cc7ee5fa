"""The strategies by name: one file each, one line of the registry each."""

import dataclasses
import difflib
from typing import Any

from gvm_jax.allocation.strategies.cero import Cero
from gvm_jax.allocation.strategies.cures import Cures
from gvm_jax.allocation.strategies.dapo import Dapo
from gvm_jax.allocation.strategies.gvm import Gvm, GvmRates
from gvm_jax.allocation.strategies.gvm_paper import GvmPaper
from gvm_jax.allocation.strategies.knapsack import Knapsack
from gvm_jax.allocation.strategies.pods import Pods
from gvm_jax.allocation.strategies.reinforce_ada import ReinforceAdaEst, ReinforceAdaSeq
from gvm_jax.allocation.strategies.speed_rl import SpeedRl
from gvm_jax.allocation.strategies.strategy import Constraints, ProgramStrategy, Progress, Strategy, share
from gvm_jax.allocation.strategies.uniform import Uniform
from gvm_jax.allocation.strategies.vip import Vip
from gvm_jax.config import ConfigError

STRATEGIES: dict[str, type[Strategy]] = {
    "uniform": Uniform,
    "gvm": Gvm,
    "gvm_rates": GvmRates,
    "gvm_paper": GvmPaper,
    "cures": Cures,
    "reinforce_ada_est": ReinforceAdaEst,
    "reinforce_ada_seq": ReinforceAdaSeq,
    "vip": Vip,
    "knapsack": Knapsack,
    "cero": Cero,
    "dapo": Dapo,
    "speed_rl": SpeedRl,
    "pods": Pods,
}


def make_strategy(config: Any) -> Strategy:
    """The strategy that `config.strategy` names, its fields read from `config.options`.

    Args:
        config: the section `config.allocation`.

    Raises:
        ConfigError: the name is not in `STRATEGIES`, the strategy has no such option, or the mode or the floor do not
          suit it.
    """
    if config.strategy not in STRATEGIES:
        near = difflib.get_close_matches(config.strategy, STRATEGIES, n=1)
        raise ConfigError(
            f"allocation.strategy = {config.strategy!r}: unknown; use one of {', '.join(STRATEGIES)}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    strategy = STRATEGIES[config.strategy]
    if strategy.rounds and config.mode != "online":
        raise ConfigError(
            f"allocation.mode = {config.mode!r}: allocation.strategy = {config.strategy!r} samples in rounds of its "
            "own; set the mode to 'online'"
        )
    if config.min_samples < strategy.least:
        raise ConfigError(
            f"allocation.min_samples = {config.min_samples}: must be >= {strategy.least} for allocation.strategy = "
            f"{config.strategy!r}, whose formula has no meaning below"
        )
    names = [field.name for field in dataclasses.fields(strategy)]
    if unknown := [name for name in config.options if name not in names]:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        raise ConfigError(
            f"allocation.options.{unknown[0]}: the strategy {config.strategy} has no such field"
            + (f"; did you mean {near[0]}?" if near else f"; it has {', '.join(names) or 'none'}")
        )
    return strategy(**config.options)


__all__ = [
    "STRATEGIES",
    "Constraints",
    "ProgramStrategy",
    "Progress",
    "Strategy",
    "make_strategy",
    "share",
    *(cls.__name__ for cls in STRATEGIES.values()),
]
