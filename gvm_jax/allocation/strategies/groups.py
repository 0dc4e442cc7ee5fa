"""Choosing among the samples of a prompt. A segment holds the samples of one prompt; `num_segments` marks padding."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def totals(values: Array, segments: Int[Array, " N"], num_segments: int) -> Array:
    """Sum of the values of each segment, without padding."""
    return jax.ops.segment_sum(values, segments, num_segments)


def rank_within(keys: Int[Array, " N"]) -> Int[Array, " N"]:
    """How many earlier rows have the same key."""
    order = jnp.argsort(keys, stable=True)
    sorted_keys = keys[order]
    first = jnp.searchsorted(sorted_keys, sorted_keys, side="left")
    return jnp.zeros_like(keys).at[order].set(jnp.arange(len(keys), dtype=keys.dtype) - first)


def balanced(
    accepted: Bool[Array, " N"], segments: Int[Array, " N"], num_segments: int, size: int
) -> Bool[Array, " N"]:
    """At most `size` samples of each segment, half of either outcome where there are enough; the earliest of each."""
    successes = totals(accepted.astype(jnp.int32), segments, num_segments)
    failures = totals((~accepted).astype(jnp.int32), segments, num_segments)
    take = jnp.clip(size - jnp.minimum(failures, size - size // 2), 0, successes)
    quota = jnp.where(accepted, take[segments], (size - take)[segments])
    return (rank_within(2 * segments + accepted) < quota) & (segments < num_segments)
