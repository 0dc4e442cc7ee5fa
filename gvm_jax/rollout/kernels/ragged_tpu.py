"""Causal attention over the paged cache by the TPU kernel that JAX bundles (Ragged Paged Attention, arXiv 2604.15464).

The kernel takes the new tokens of all sequences as one list, visits the sequences one after another, and while it works
on one copies the pages of the next. Two things follow: a sequence without a token would leave a copy that nobody waits
for, so idle rows are sorted behind the others and not counted; and what it returns for them is never written.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from gvm_jax.rollout.kernels.heads import cache_head_dim, check_heads, split_heads

__all__ = ["cache_head_dim", "ragged_attention"]

KEY_BLOCK_TOKENS = 256  # keys read at once: always whole blocks, so a larger one costs short sequences more
KEY_BLOCK_PAGES = 16  # most pages read at once: the kernel unrolls their copies
CHUNK_QUERY_BLOCK = 32  # the size that JAX's own table of measured block sizes has for nearly all shapes
DECODE_QUERY_BLOCK = 8  # each sequence's keys meet all queries of a block, of which one is its own


def ragged_attention(
    q: Float[Array, "S C H D"],
    cache: Float[Array, "LP page KV2 Dc"],
    page_tables: Int[Array, "S M"],
    positions: Int[Array, "S C"],
    first_page: Int[Array, ""],
    *,
    mesh: Mesh | None = None,
    kernel: Callable[..., Array] = ragged_paged_attention,
) -> Float[Array, "S C H D"]:
    """softmax(q kᵀ / sqrt(D)) v of C new tokens of each of S sequences over tokens 0..position of their sequence.

    The keys and values of the new tokens are in the cache already.

    Args:
      q: query head h reads KV head h // (H / K).
      cache: keys at even and values at odd heads of 2 K; Dc = `cache_head_dim(D)`, and what is beyond D is finite.
      page_tables: the pages of each sequence in order, counted from `first_page`; unused entries are any valid page.
      positions: of the new tokens, consecutive; the tokens of a row come first, negative = no token (the result is 0).
      first_page: the layer's first page in the cache.
      mesh: split the heads over its axis "tensor"; see `split_heads`. None = a single device.
      kernel: has the signature of the bundled kernel; it runs on a TPU only, a test passes a reference for it.
    """
    check_heads(q, cache)
    function = functools.partial(_ragged_attention, kernel=kernel)
    function = split_heads(function, mesh, cache.shape[2] // 2, num_results=1)
    return function(q, cache, page_tables, positions, first_page)


def _ragged_attention(q, cache, page_tables, positions, first_page, *, kernel):
    """`ragged_attention` on one device."""
    s, c, heads, head_dim = q.shape
    page_size, held_dim = cache.shape[1], cache.shape[3]
    active = positions[:, 0] >= 0
    order = jnp.argsort(~active, stable=True)
    # All C tokens of an active row go in: those behind its last one see more keys than any other and are dropped.
    tokens = jnp.pad(q[order], ((0, 0), (0, 0), (0, 0), (0, held_dim - head_dim))).reshape(s * c, heads, held_dim)
    result = kernel(
        tokens,
        cache,
        (jnp.maximum(positions[:, 0], 0) + c)[order].astype(jnp.int32),  # keys that a row's last token sees
        (first_page + page_tables)[order].astype(jnp.int32),
        jnp.arange(s + 1, dtype=jnp.int32) * c,  # where each row's tokens begin
        jnp.maximum(active.sum(dtype=jnp.int32), 1)[None],  # the kernel needs a sequence to start with
        sm_scale=head_dim**-0.5,
        num_kv_pages_per_block=min(max(1, KEY_BLOCK_TOKENS // page_size), KEY_BLOCK_PAGES, page_tables.shape[1]),
        num_queries_per_block=DECODE_QUERY_BLOCK if c == 1 else CHUNK_QUERY_BLOCK,
    )
    result = result.reshape(s, c, heads, held_dim)[jnp.argsort(order), ..., :head_dim]
    return jnp.where((positions >= 0)[..., None, None], result, 0)
