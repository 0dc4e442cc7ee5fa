"""Attention to a range of a sequence's keys, as a Pallas TPU kernel: what decoding with shared prompts is built from.

Softmax attention over a set of keys can be computed over its parts and merged afterwards, exactly (FlashAttention,
arXiv 2205.14135, section 3.1). When the samples of a prompt are decoded together, the part over the prompt's keys is
one matrix product for all of them that reads the prompt once (Hydragen, arXiv 2402.05099, section 3); the part over a
sample's own keys is its own. Per layer and step, with K KV heads of D numbers in `itemsize` bytes, that reads

  without sharing:  2 · K · D · itemsize · Σ over slots of (prompt + own tokens)
  with sharing:     2 · K · D · itemsize · (Σ over tiles of prompt tokens + Σ over slots of own tokens)

where a tile is up to T samples of one prompt. Decoding is bound by these bytes: 8 samples of a 1000-token prompt with
200 own tokens each read 9,600 tokens in the first case and 2,600 in the second.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from gvm_jax.rollout.kernels.heads import LANES, check_heads, group_queries, split_heads, ungroup_queries

BLOCK_TOKENS = 256  # keys in flight at once: enough to hide the latency of the copies, 1 MiB of VMEM with 4 KV heads


def partial_attention(
    q: Float[Array, "N T H D"],
    cache: Float[Array, "LP page KV2 Dc"],
    page_tables: Int[Array, "N M"],
    begin: Int[Array, " N"],
    end: Int[Array, " N"],
    first_page: Int[Array, ""],
    *,
    interpret: bool = False,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "N T H D"], Float[Array, "N T H"], Float[Array, "N T H"]]:
    """Attention of T queries of each of N items to the keys at positions begin <= j < end, not yet normalised.

    With the scores s_j = q · k_j / sqrt(D), over the keys of the range,

      max_score = max_j s_j,    sum_exp = Σ_j exp(s_j - max_score),    values = Σ_j exp(s_j - max_score) v_j;

    an empty range gives max_score -inf, sum_exp 0 and values 0. The attention is values / sum_exp; parts over
    disjoint ranges are brought to their common maximum and added. There is no causal mask: every query sees the range.

    Args:
      q: the queries; query head h reads KV head h // (H / K).
      cache: keys at even and values at odd heads of 2 K; Dc = `cache_head_dim(D)`, and what is beyond D is finite.
      page_tables: the pages of each item's sequence in order, counted from `first_page`; entries whose page holds
        no key of the range are never read.
      begin: first position of each item's range.
      end: position after each item's range, at most M · page; end <= begin is an empty range.
      first_page: the layer's first page in the cache.
      interpret: run on any backend, slowly: Pallas then turns the kernel into plain XLA operations.
      mesh: split the heads over its axis "tensor"; see `split_heads`. None = a single device.

    Returns:
      values, max_score, sum_exp: all float32.
    """
    check_heads(q, cache)
    function = functools.partial(_partial_attention, interpret=interpret)
    function = split_heads(function, mesh, cache.shape[2] // 2, num_results=3)
    return function(q, cache, page_tables, begin, end, first_page)


def _partial_attention(q, cache, page_tables, begin, end, first_page, *, interpret):
    """`partial_attention` on one device."""
    n, t, heads, head_dim = q.shape
    num_pages, page_size, combined, held_dim = cache.shape
    kv_heads = combined // 2
    used = t * heads // kv_heads
    block_pages = min(max(1, BLOCK_TOKENS // page_size), page_tables.shape[1])
    block_tokens = block_pages * page_size

    sublanes = 32 // q.dtype.itemsize  # rows fill whole registers
    rows = pl.cdiv(used, sublanes) * sublanes
    queries = group_queries(q, kv_heads)
    queries = jnp.pad(queries, ((0, 0), (0, 0), (0, rows - used), (0, held_dim - head_dim)))

    blocks = _num_blocks(begin, end, page_size, block_pages)
    blocks_before = jnp.cumsum(blocks) - blocks
    not_empty = jnp.where(blocks > 0, jnp.arange(n), n)
    not_empty_from = jnp.append(jax.lax.cummin(not_empty, reverse=True), n)
    scalars = ((first_page + page_tables).reshape(-1), begin, end, blocks_before, not_empty_from)

    scratch = [
        pltpu.VMEM((2, block_pages, page_size * combined, held_dim), cache.dtype),
        pltpu.SemaphoreType.DMA((2,)),
    ]
    if cache.dtype.itemsize == 2:
        scratch.append(pltpu.VMEM((block_tokens * kv_heads, held_dim), jnp.uint32))
    values, stats = pl.pallas_call(
        functools.partial(_kernel, page_size=page_size, scale=head_dim**-0.5),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(n,),
            in_specs=[
                pl.BlockSpec((None, kv_heads, rows, held_dim), lambda i, *_: (i, 0, 0, 0)),
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=[
                pl.BlockSpec((None, kv_heads, rows, held_dim), lambda i, *_: (i, 0, 0, 0)),
                pl.BlockSpec((None, kv_heads, rows, LANES), lambda i, *_: (i, 0, 0, 0)),
            ],
            scratch_shapes=scratch,
        ),
        out_shape=[
            jax.ShapeDtypeStruct((n, kv_heads, rows, held_dim), jnp.float32),
            jax.ShapeDtypeStruct((n, kv_heads, rows, LANES), jnp.float32),
        ],
        # In order: an item's last block starts the copies of the next item's first one.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="partial_attention",
    )(
        *(x.astype(jnp.int32) for x in scalars),
        queries,
        # A token's heads become rows of its page: the same bytes, so no copy is made.
        cache.reshape(num_pages, page_size * combined, held_dim),
    )

    values, stats = (ungroup_queries(x[:, :, :used], t) for x in (values, stats))
    return values[..., :head_dim], stats[..., 0], stats[..., 1]


def _num_blocks(begin, end, page_size: int, block_pages: int):
    """How many blocks of `block_pages` pages, from the page of `begin` on, hold the range."""
    pages = pl.cdiv(end, page_size) - begin // page_size
    return jnp.where(end > begin, pl.cdiv(pages, block_pages), 0)


def _kernel(
    tables,  # [N · M] in scalar memory, like all up to q_ref
    begin,  # [N]
    end,  # [N]
    blocks_before,  # [N] blocks of all earlier items; the parity of a block's number is its buffer
    not_empty_from,  # [N + 1] the first item from this one on that has a block; N = none
    q_ref,  # [K, rows, Dc]
    cache_ref,  # [LP, page · 2K, Dc] in HBM
    values_ref,  # [K, rows, Dc]
    stats_ref,  # [K, rows, LANES]; max_score in the first lane, sum_exp in the others
    buffers,  # [2, block_pages, page · 2K, Dc]
    arrived,  # semaphores of the two buffers
    words_ref=None,  # [block_tokens · K, Dc]: with a 16-bit cache, its rows as pairs of key and value
    *,
    page_size: int,
    scale: float,
):
    """One item; the blocks of all items form one pipeline with two buffers."""
    item, num_items = pl.program_id(0), pl.num_programs(0)
    width = tables.shape[0] // begin.shape[0]
    _, block_pages, page_rows, held_dim = buffers.shape
    kv_heads, rows, _ = q_ref.shape
    block_tokens = block_pages * page_size

    def for_each_copy(item, block, action):
        first = begin[item] // page_size + block * block_pages
        pages = jnp.minimum(pl.cdiv(end[item], page_size) - first, block_pages)
        buffer = (blocks_before[item] + block) % 2

        def one_page(i, _):
            page = tables[item * width + first + i]
            action(pltpu.make_async_copy(cache_ref.at[page], buffers.at[buffer, i], arrived.at[buffer]))

        jax.lax.fori_loop(0, pages, one_page, None)

    @pl.when((item == 0) & (not_empty_from[0] < num_items))
    def _():
        for_each_copy(not_empty_from[0], 0, lambda copy: copy.start())

    num_blocks = _num_blocks(begin[item], end[item], page_size, block_pages)

    def one_block(block, carry):
        last = block + 1 == num_blocks
        next_item = jnp.where(last, not_empty_from[item + 1], item)

        @pl.when(next_item < num_items)
        def _():
            for_each_copy(next_item, jnp.where(last, 0, block + 1), lambda copy: copy.start())

        for_each_copy(item, block, lambda copy: copy.wait())
        buffer = (blocks_before[item] + block) % 2
        start = (begin[item] // page_size + block * block_pages) * page_size

        def in_range(shape, axis):
            position = start + jax.lax.broadcasted_iota(jnp.int32, shape, axis)
            return (position >= begin[item]) & (position < end[item])

        # Rows outside of the range are other tokens' or were never written: not even a NaN there may count.
        live_row = in_range((block_tokens, held_dim), 0)
        live_score = in_range((rows, block_tokens), 1)
        if words_ref is not None:
            words_ref[...] = pltpu.bitcast(buffers[buffer].reshape(block_pages * page_rows, held_dim), jnp.uint32)

        def keys_and_values(head):
            if words_ref is None:
                pair = [buffers[buffer, :, pl.ds(2 * head + i, page_size, 2 * kv_heads)] for i in (0, 1)]
                return [jnp.where(live_row, x.reshape(block_tokens, held_dim), 0.0) for x in pair]
            pair = jnp.where(live_row, words_ref[pl.ds(head, block_tokens, kv_heads)], jnp.uint32(0))
            pair = pair << 16, pair & jnp.uint32(0xFFFF0000)  # a bfloat16 is the upper half of a float32
            return [jax.lax.bitcast_convert_type(x, jnp.float32).astype(cache_ref.dtype) for x in pair]

        def one_head(head, max_score, sum_exp, values):
            keys, held = keys_and_values(head)
            exact = jax.lax.Precision.HIGHEST if keys.dtype == jnp.float32 else None
            dot = functools.partial(jax.lax.dot_general, precision=exact, preferred_element_type=jnp.float32)
            scores = dot(q_ref[head], keys, (((1,), (1,)), ((), ()))) * scale
            scores = jnp.where(live_score, scores, -jnp.inf)
            new_max = jnp.maximum(max_score, scores.max(1, keepdims=True))  # finite: every block has a key of the range
            weights = jnp.exp(scores - new_max)
            rescale = jnp.exp(max_score - new_max)
            added = dot(weights.astype(held.dtype), held, (((1,), (0,)), ((), ())))
            return new_max, sum_exp * rescale + weights.sum(1, keepdims=True), values * rescale + added

        return [one_head(head, *part) for head, part in enumerate(carry)]

    column = (rows, 1)
    nothing = (jnp.full(column, -jnp.inf), jnp.zeros(column), jnp.zeros((rows, held_dim)))
    parts = jax.lax.fori_loop(0, num_blocks, one_block, [nothing] * kv_heads)
    for head, (max_score, sum_exp, values) in enumerate(parts):
        lane = jax.lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)
        stats_ref[head] = jnp.where(lane == 0, max_score, sum_exp)
        values_ref[head] = values
