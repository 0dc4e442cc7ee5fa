"""Heads as the attention kernels take them: padded, grouped by KV head, split over devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

LANES = 128  # the TPU's vectors are 128 wide, and a page is copied in whole vectors


def cache_head_dim(head_dim: int) -> int:
    """The head dimension that a cache read by the TPU kernels is allocated with: `head_dim` rounded up to 128."""
    return -(-head_dim // LANES) * LANES


def check_heads(q: Float[Array, "N T H D"], cache: Float[Array, "LP page KV2 Dc"]) -> None:
    """Raise a ValueError unless the queries can read the cache on a TPU."""
    check_groups(q, cache)
    head_dim, held_dim = q.shape[3], cache.shape[3]
    if held_dim != cache_head_dim(head_dim):
        raise ValueError(
            f"the cache's head dimension is {held_dim}; the TPU kernels read head_dim {head_dim} from a cache of "
            f"{cache_head_dim(head_dim)}: allocate it with cache_head_dim({head_dim})"
        )


def check_groups(q: Float[Array, "N T H D"], cache: Float[Array, "LP page KV2 Dc"]) -> None:
    """Raise a ValueError unless the query heads divide evenly over the cache's KV heads."""
    heads, combined = q.shape[2], cache.shape[2]
    if combined % 2 or heads % (combined // 2):
        raise ValueError(
            f"{heads} query heads do not divide into groups over a cache of {combined} combined heads; it has a key "
            "and a value head for each KV head, and the KV heads must divide the query heads"
        )


def group_queries(q: Float[Array, "N T H D"], kv_heads: int) -> Float[Array, "N K TG D"]:
    """The queries that read one KV head as the rows of one matrix."""
    n, t, _, head_dim = q.shape
    return q.reshape(n, t, kv_heads, -1, head_dim).swapaxes(1, 2).reshape(n, kv_heads, -1, head_dim)


def ungroup_queries(x: Float[Array, "N K TG ..."], t: int) -> Float[Array, "N T H ..."]:
    """The results of `group_queries` by query and head."""
    n, kv_heads, _, *rest = x.shape
    return x.reshape(n, kv_heads, t, -1, *rest).swapaxes(1, 2).reshape(n, t, -1, *rest)


def split_heads(function: Callable, mesh: Mesh | None, kv_heads: int, num_results: int) -> Callable:
    """`function(q, cache, *others)` run on each device of the mesh, on the device's own heads.

    Heads are axis 2 of q, of the cache and of every result. They are split over the mesh axis "tensor" where it divides
    the KV heads; where it does not, and over all other axes, each device computes the same. Kernels know one device
    only, so the compiler cannot split them itself.

    Args:
      function: takes q, the cache and any number of arrays that every device gets whole.
      mesh: None = the function itself.
      kv_heads: in the whole cache.
      num_results: how many arrays the function returns; with 1 an array, otherwise a tuple.
    """
    if mesh is None:
        return function
    heads = PartitionSpec(None, None, "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None)
    results = heads if num_results == 1 else (heads,) * num_results

    def split(q, cache, *others):
        specs = (heads, heads, *(PartitionSpec(),) * len(others))
        # Where the caller has split the mesh's other axes already, what is left of it is the context's.
        done = jax.sharding.get_abstract_mesh().manual_axes
        mapped = jax.shard_map(
            function, mesh=None if done else mesh, axis_names=set(mesh.axis_names) - set(done), in_specs=specs,
            out_specs=results, check_vma=False,
        )  # fmt: skip
        return mapped(q, cache, *map(jnp.asarray, others))

    return split
