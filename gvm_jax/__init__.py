"""GVM in JAX: train chain-of-thought reasoners with variance-minimising rollout budgets.

The names below are imported when they are first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "get_config": "gvm_jax.config",
    "load_config": "gvm_jax.config",
    "validate": "gvm_jax.config",
    "Reasoner": "gvm_jax.reasoner",
    "Rollouts": "gvm_jax.rollout.rollouts",
    "Trainer": "gvm_jax.training.trainer",
    "Sampler": "gvm_jax.training.sampler",
    "TrainStep": "gvm_jax.training.step",
    "RolloutEngine": "gvm_jax.rollout.engine",
    "Policy": "gvm_jax.rollout.policy",
    "Grader": "gvm_jax.rewards",
    "grade": "gvm_jax.rewards",
    "allocate": "gvm_jax.allocation",
    "Strategy": "gvm_jax.allocation",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'gvm_jax' has no attribute {name!r}; it has {', '.join(_MODULES)}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
