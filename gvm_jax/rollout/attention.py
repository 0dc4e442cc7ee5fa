"""Attention over the paged KV cache: one contract, here in its XLA form.

The cache is one array [layers · pages, page_size, 2 · kv_heads, head_dim], keys at even and values at odd heads; layer
l owns the pages from l · pages on. One array, so that the scan over layers updates it in place; the pages of a layer
are what the TPU's ragged paged attention kernel reads.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gvm_jax.models.qwen2 import Attention
from gvm_jax.rollout.pages import TRASH_PAGE, pages_for

BLOCK_TOKENS = 128  # keys read at once; fixed, so that the page size does not change the order of summation


def block_pages(page_size: int) -> int:
    """Pages read at once."""
    return max(1, BLOCK_TOKENS // page_size)


def table_width(max_tokens: int, page_size: int) -> int:
    """Entries of a page table for sequences of up to `max_tokens`: a whole number of key blocks."""
    block = block_pages(page_size)
    return pages_for(pages_for(max_tokens, page_size), block) * block


def paged_attention(page_tables: Int[Array, "S M"], positions: Int[Array, "S C"], num_pages: int) -> Attention:
    """Causal attention of C new tokens of each of S sequences to all tokens of their sequence.

    Writes the new keys and values, then reads the sequences block by block with a running softmax (FlashAttention,
    arXiv 2205.14135, algorithm 1). The number of blocks is that of the longest sequence now alive.

    Args:
      page_tables: the pages of each sequence in order, `table_width` of them; unused entries are any valid page.
      positions: of the new tokens in their sequences; negative = no token (nothing is written, the result is 0).
      num_pages: pages a layer has.
    """

    def attention(q, k, v, layer, cache):
        page_size = cache.shape[1]
        cache = _write(cache, k, v, page_tables, positions, layer * num_pages)
        block = block_pages(page_size) * page_size
        num_blocks = (jnp.max(positions) + block) // block
        s, c, heads, dim = q.shape
        kv_heads = k.shape[2]
        queries = q.reshape(s, c, kv_heads, heads // kv_heads, dim)

        def read_block(i, carry):
            peak, total, mixed = carry
            pages = jax.lax.dynamic_slice_in_dim(page_tables, i * (block // page_size), block // page_size, axis=1)
            kv = cache[layer * num_pages + pages].reshape(s, block, kv_heads, 2, dim)
            scores = jnp.einsum("sckgd,stkd->skgct", queries, kv[..., 0, :], preferred_element_type=jnp.float32)
            visible = (i * block + jnp.arange(block)) <= positions[:, :, None]  # [S, C, block]
            scores = jnp.where(visible[:, None, None], scores * dim**-0.5, -jnp.inf)
            new_peak = jnp.maximum(peak, scores.max(-1))
            shift = jnp.where(jnp.isfinite(new_peak), new_peak, 0.0)  # a row that sees no key yet
            weights = jnp.exp(scores - shift[..., None])
            scale = jnp.exp(peak - shift)
            values = jnp.einsum(
                "skgct,stkd->skgcd",
                weights.astype(v.dtype),
                kv[..., 1, :],
                preferred_element_type=jnp.float32,
            )
            return new_peak, total * scale + weights.sum(-1), mixed * scale[..., None] + values

        rows = (s, kv_heads, heads // kv_heads, c)
        start = (jnp.full(rows, -jnp.inf), jnp.zeros(rows), jnp.zeros((*rows, dim)))
        _, total, mixed = jax.lax.fori_loop(0, num_blocks, read_block, start)
        mixed = mixed / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None]
        return jnp.moveaxis(mixed, 3, 1).reshape(q.shape).astype(q.dtype), cache

    return attention


def _write(
    cache: Float[Array, "LP page KV2 D"], k, v, page_tables, positions: Int[Array, "S C"], first_page
) -> Float[Array, "LP page KV2 D"]:
    page_size = cache.shape[1]
    at = jnp.maximum(positions, 0)
    pages = jnp.where(positions < 0, TRASH_PAGE, jnp.take_along_axis(page_tables, at // page_size, axis=1))
    kv = jnp.stack([k, v], axis=3).reshape(*k.shape[:2], cache.shape[2], cache.shape[3])
    return cache.at[first_page + pages, at % page_size].set(kv.astype(cache.dtype))
