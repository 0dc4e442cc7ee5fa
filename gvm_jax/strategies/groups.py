"""Helpers of strategies that sample in rounds or train on some of the samples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.allocation import Progress, solver


def share(wanted: Int[Array, " m"], budget: Int[Array, ""]) -> Int[Array, " m"]:
    """`wanted` where the budget allows, else as level as it does, the earliest prompts first."""
    level = solver.sample_mean((wanted > 0).astype(jnp.float32))
    return solver.allocate(level, jnp.minimum(budget, wanted.sum()), 0, wanted)


def is_mixed(progress: Progress) -> Bool[Array, " m"]:
    """The prompts with accepted and rejected samples."""
    return (progress.successes > 0) & (progress.successes < progress.trials)


def tally(rewards: Float[Array, " N"], segments: Int[Array, " N"], num_segments: int) -> Progress:
    """Accepted samples and samples of each segment, without rows of the segment `num_segments`."""

    def total(rows):
        return jax.ops.segment_sum(rows, segments, num_segments)

    return Progress(total((rewards > 0).astype(jnp.int32)), total(jnp.ones_like(segments)), rounds=jnp.int32(1))
