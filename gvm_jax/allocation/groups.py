"""Rows of samples by group: an integer for each row names the prompt that it belongs to."""

import jax.numpy as jnp
from jaxtyping import Array, Int, Real


def rank_within(groups: Int[Array, " N"], values: Real[Array, " N"] | None = None) -> Int[Array, " N"]:
    """Each row's rank among the rows of its group, from 0 on: by value, the lowest first, then by position."""
    order = jnp.lexsort((groups,) if values is None else (values, groups))
    ordered = groups[order]
    rank = jnp.arange(groups.size, dtype=groups.dtype) - jnp.searchsorted(ordered, ordered).astype(groups.dtype)
    return jnp.zeros_like(groups).at[order].set(rank)
