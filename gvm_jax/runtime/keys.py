"""Random keys of a run: one independent key for each purpose and step."""

import jax
from jax.typing import ArrayLike
from jaxtyping import Array, Key

_PURPOSES = ("rollouts", "evaluation", "mini_batches", "prompts")


def run_key(seed: int, purpose: str, step: ArrayLike) -> Key[Array, ""]:
    """The key of a purpose ("rollouts", "evaluation", "mini_batches" or "prompts") at a step; `step` may be traced."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _PURPOSES.index(purpose)), step)
