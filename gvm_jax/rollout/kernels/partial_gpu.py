"""Attention to a range of a sequence's keys on GPUs: the contract of `partial_tpu`, as a Pallas Triton kernel."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from gvm_jax.rollout.kernels.heads import check_groups, group_queries, split_heads, ungroup_queries

BLOCK_TOKENS = 64  # keys of one step; Triton's shapes are powers of two
LEAST_ROWS = 16  # the least rows of a matrix product on tensor cores


def partial_attention(
    q: Float[Array, "N T H D"],
    cache: Float[Array, "LP page KV2 D"],
    page_tables: Int[Array, "N M"],
    begin: Int[Array, " N"],
    end: Int[Array, " N"],
    first_page: Int[Array, ""],
    *,
    interpret: bool = False,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "N T H D"], Float[Array, "N T H"], Float[Array, "N T H"]]:
    """Attention of T queries of each of N items to the keys at positions begin <= j < end, not yet normalised.

    Arguments and results (values, max_score, sum_exp) are those of `partial_tpu.partial_attention`, but the cache
    has the model's own head dimension, a power of two from 16 on. One program per item and KV head reads the range from
    begin to end: a GPU is filled by many items, not by a few with long ranges.
    """
    check_groups(q, cache)
    function = functools.partial(_partial_attention, interpret=interpret)
    function = split_heads(function, mesh, cache.shape[2] // 2, num_results=3)
    return function(q, cache, page_tables, begin, end, first_page)


def _partial_attention(q, cache, page_tables, begin, end, first_page, *, interpret):
    """`partial_attention` on one device."""
    n, t, heads, head_dim = q.shape
    num_pages, page_size, combined, _ = cache.shape
    kv_heads = combined // 2
    used = t * heads // kv_heads
    rows = max(LEAST_ROWS, pl.next_power_of_2(used))
    queries = jnp.pad(group_queries(q, kv_heads), ((0, 0), (0, 0), (0, rows - used), (0, 0)))

    matrix = pl.BlockSpec((None, None, rows, head_dim), lambda item, head: (item, head, 0, 0))
    column = pl.BlockSpec((None, None, rows), lambda item, head: (item, head, 0))
    results = pl.pallas_call(
        functools.partial(_kernel, page_size=page_size, scale=head_dim**-0.5),
        grid=(n, kv_heads),
        in_specs=[matrix] + [pl.BlockSpec()] * 4,
        out_specs=[matrix, column, column],
        out_shape=[
            jax.ShapeDtypeStruct(queries.shape, jnp.float32),
            jax.ShapeDtypeStruct(queries.shape[:3], jnp.float32),
            jax.ShapeDtypeStruct(queries.shape[:3], jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="partial_attention",
    )(queries, first_page + page_tables, begin, end, cache.reshape(num_pages * page_size, combined, head_dim))
    return tuple(ungroup_queries(x[:, :, :used], t) for x in results)


def _kernel(q_ref, tables_ref, begin_ref, end_ref, cache_ref, values_ref, max_ref, sum_exp_ref, *, page_size, scale):
    """One item and KV head, a block of keys at a time with a running softmax."""
    item, head = pl.program_id(0), pl.program_id(1)
    begin, end = begin_ref[item], end_ref[item]
    q = q_ref[...]
    exact = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    dot = functools.partial(jnp.dot, precision=exact, preferred_element_type=jnp.float32)

    def one_block(block, carry):
        max_score, sum_exp, values = carry
        position = begin + block * BLOCK_TOKENS + jnp.arange(BLOCK_TOKENS)
        at = jnp.minimum(position, end - 1)  # the last block reads the last key again, not what is behind it
        row = tables_ref[item, at // page_size] * page_size + at % page_size
        keys, held = (cache_ref[row, 2 * head + i, :].astype(q.dtype) for i in (0, 1))
        scores = jnp.where((position < end)[None, :], dot(q, keys.T) * scale, -jnp.inf)
        new_max = jnp.maximum(max_score, scores.max(1))  # finite: every block has a key of the range
        weights = jnp.exp(scores - new_max[:, None])
        rescale = jnp.exp(max_score - new_max)
        values = values * rescale[:, None] + dot(weights.astype(q.dtype), held)
        return new_max, sum_exp * rescale + weights.sum(1), values

    rows = q.shape[0]
    nothing = (jnp.full(rows, -jnp.inf), jnp.zeros(rows), jnp.zeros(q.shape, jnp.float32))
    num_blocks = pl.cdiv(jnp.maximum(end - begin, 0), BLOCK_TOKENS)
    max_ref[...], sum_exp_ref[...], values_ref[...] = jax.lax.fori_loop(0, num_blocks, one_block, nothing)
