"""Attention to a range of a sequence's keys in plain JAX, right on every backend, and how such parts are merged.

This is a CPU's decode attention, and the prefill of CPUs and GPUs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gvm_jax.rollout.kernels.heads import group_queries, ungroup_queries

KEY_BLOCK = 64  # keys read at once by an item
ITEM_BLOCK = 16  # items read at once: each block of them loops only as far as its longest


class Part(NamedTuple):
    """Softmax attention over some of the keys, not yet divided by its total weight; parts over other keys add to it."""

    values: Float[Array, "N T H D"]  # Σ_j exp(s_j - max_score) v_j, float32
    max_score: Float[Array, "N T H"]  # max_j s_j; -inf over no keys
    sum_exp: Float[Array, "N T H"]  # Σ_j exp(s_j - max_score)


def merge(first: Part, second: Part) -> Part:
    """The part over the keys of both (log-sum-exp merge, as in FlashAttention, arXiv 2205.14135, section 3.1)."""
    max_score = jnp.maximum(first.max_score, second.max_score)
    shift = jnp.where(jnp.isfinite(max_score), max_score, 0.0)
    scales = jnp.exp(first.max_score - shift), jnp.exp(second.max_score - shift)
    values = first.values * scales[0][..., None] + second.values * scales[1][..., None]
    return Part(values, max_score, first.sum_exp * scales[0] + second.sum_exp * scales[1])


def normalise(part: Part) -> Float[Array, "N T H D"]:
    """The mixed values; 0 over no keys."""
    return part.values / jnp.maximum(part.sum_exp, jnp.finfo(jnp.float32).tiny)[..., None]


def partial_attention(
    q: Float[Array, "N T H D"],
    cache: Float[Array, "LP page KV2 D"],
    page_tables: Int[Array, "N M"],
    begin: Int[Array, " N"],
    end: Int[Array, "N T"],
    first_page: Int[Array, ""],
) -> Part:
    """Attention of T queries of each of N items to the keys at positions begin <= j < end of the item's pages.

    Reads `KEY_BLOCK` keys of `ITEM_BLOCK` items at a time with a running softmax (FlashAttention, arXiv 2205.14135,
    algorithm 1). Keys are read by token, not by page, so the page size does not change the order of summation.
    """
    items, queries, heads, dim = q.shape
    page_size, kv_heads = cache.shape[1], cache.shape[2] // 2
    block = min(ITEM_BLOCK, items)
    padded = -(-items // block) * block
    grouped = group_queries(q, kv_heads)

    def pad(x):
        return jnp.pad(x, ((0, padded - items), *((0, 0),) * (x.ndim - 1)))

    grouped, page_tables, begin, end = pad(grouped), pad(page_tables), pad(begin), pad(end)
    last = page_tables.shape[1] * page_size - 1

    def read_items(i, parts):
        def mine(x):
            return jax.lax.dynamic_slice_in_dim(x, i * block, block)

        tables, first, until = mine(page_tables), mine(begin), mine(end)
        until = jnp.repeat(until, heads // kv_heads, axis=1)[:, None, :, None]  # [block, 1, rows, 1]
        my_queries = mine(grouped)

        def read_keys(j, part):
            at = first[:, None] + j * KEY_BLOCK + jnp.arange(KEY_BLOCK)
            visible = at[:, None, None] < until
            at = jnp.minimum(at, last)
            pages = first_page + jnp.take_along_axis(tables, at // page_size, axis=1)
            kv = cache[pages, at % page_size].reshape(block, KEY_BLOCK, kv_heads, 2, dim)
            kv = kv.transpose(0, 2, 3, 1, 4)  # heads first: XLA's CPU backend has a fast batched product for it
            scores = jnp.einsum("nkrd,nktd->nkrt", my_queries, kv[:, :, 0], preferred_element_type=jnp.float32)
            scores = jnp.where(visible, scores * dim**-0.5, -jnp.inf)
            max_score = jnp.maximum(part.max_score, scores.max(-1))
            shift = jnp.where(jnp.isfinite(max_score), max_score, 0.0)  # a row that sees no key yet
            weights = jnp.exp(scores - shift[..., None])
            scale = jnp.exp(part.max_score - shift)
            values = jnp.einsum(
                "nkrt,nktd->nkrd", weights.astype(q.dtype), kv[:, :, 1], preferred_element_type=jnp.float32
            )
            return Part(part.values * scale[..., None] + values, max_score, part.sum_exp * scale + weights.sum(-1))

        longest = jnp.max(until[:, 0, :, 0] - first[:, None])
        empty = jax.tree.map(lambda x: x[:block], parts_like)
        part = jax.lax.fori_loop(0, (longest + KEY_BLOCK - 1) // KEY_BLOCK, read_keys, empty)
        return jax.tree.map(lambda whole, x: jax.lax.dynamic_update_slice_in_dim(whole, x, i * block, 0), parts, part)

    shape = grouped.shape[:3]
    parts_like = Part(jnp.zeros((*shape, dim)), jnp.full(shape, -jnp.inf), jnp.zeros(shape))
    live = jnp.max(jnp.where((end > begin[:, None]).any(1), jnp.arange(padded) + 1, 0))
    parts = jax.lax.fori_loop(0, (live + block - 1) // block, read_items, parts_like)

    return Part(*(ungroup_queries(x[:items], queries) for x in parts))
