"""Attention over the paged KV cache: one contract, its XLA form, which is right everywhere, and the choice of kernels.

The cache is one array [layers · pages, page_size, 2 · kv_heads, head_dim], keys at even and values at odd heads; layer
l owns the pages from l · pages on. One array, so that the scan over layers updates it in place; the pages of a layer
are what the TPU kernels read.

All samples of a prompt attend to the same prompt, so a decode step reads it once for all of them and merges that part
of each softmax with the part over the sample's own tokens (Hydragen, arXiv 2402.05099, section 3.1). With n samples
of a prompt of P tokens and r tokens of their own each, a layer reads P + n·r instead of n·(P + r) keys and values.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from gvm_jax.config import ConfigError
from gvm_jax.models.packed_attention import Attention
from gvm_jax.rollout.kernels import partial_gpu, partial_tpu
from gvm_jax.rollout.kernels.heads import cache_head_dim
from gvm_jax.rollout.kernels.ragged_tpu import ragged_attention
from gvm_jax.rollout.pages import TRASH_PAGE

KEY_BLOCK = 64  # keys read at once by an item
ITEM_BLOCK = 16  # items read at once: each block of them loops only as far as its longest
TILE = 8  # samples of a prompt that read its keys together


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


@struct.dataclass
class Tiles:
    """Samples of the same prompt, at most `TILE` together, that read the prompt's keys once for all.

    At most N = S tiles for S sequences; unused ones have length 0, unused lanes repeat any sequence.
    """

    members: Int[Array, "N tile"]  # the sequence in each lane
    page_table: Int[Array, "N Mp"]  # the prompt's pages
    length: Int[Array, " N"]  # prompt tokens to attend to
    tile: Int[Array, " S"]  # each sequence's tile ...
    lane: Int[Array, " S"]  # ... and its lane there


def make_tiles(group: Int[np.ndarray, " S"], prompt_tables: Int[np.ndarray, "S Mp"], lengths: Int[np.ndarray, " S"]):
    """Tiles of S sequences from the prompt each samples: its number (-1 = idle), pages and tokens. Host arrays."""
    size = len(group)
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    rank = np.arange(size) - np.repeat(starts, np.diff(np.r_[starts, size]))
    # Idle sequences sort first and take no tile; their tile number is clipped to any valid one.
    lane = np.where(ordered < 0, 0, rank % TILE)
    number = np.cumsum((lane == 0) & (ordered >= 0)) - 1
    live = ordered >= 0
    tiles = Tiles(
        members=np.zeros((size, TILE), np.int32),
        page_table=np.full((size, prompt_tables.shape[1]), TRASH_PAGE, np.int32),
        length=np.zeros(size, np.int32),
        tile=np.zeros(size, np.int32),
        lane=np.zeros(size, np.int32),
    )
    tiles.members[number[live], lane[live]] = order[live]
    tiles.page_table[number[live]] = prompt_tables[order[live]]
    tiles.length[number[live]] = lengths[order[live]]
    tiles.tile[order] = np.maximum(number, 0)
    tiles.lane[order] = lane
    return tiles


PLATFORM = {"tpu": "tpu", "tpu_shared": "tpu", "gpu": "gpu"}  # that kernels run on; xla runs on all


def resolve_attention(name: str, platform: str) -> str:
    """The kernels that `rollout.attention` names, on devices of this platform ("cpu", "gpu", "tpu").

    auto: `tpu` on TPUs, `gpu` on GPUs, `xla` elsewhere.

    Raises:
      ConfigError: the kernels run on another platform.
    """
    if name == "auto":
        return platform if platform in PLATFORM.values() else "xla"
    if PLATFORM.get(name, platform) != platform:
        raise ConfigError(
            f"rollout.attention = {name!r}: runs on a {PLATFORM[name].upper()}, and this run's devices are of the "
            f"platform {platform!r}; use 'xla' or 'auto'"
        )
    return name


@dataclasses.dataclass(frozen=True)
class PagedAttention:
    """How queries meet the cache.

    kernels: `xla`: plain JAX, prompts read once for all of their samples. `tpu`: the ragged paged attention kernel that
      JAX bundles, which reads a prompt once for each sample. `tpu_shared`: our own TPU kernel for decoding, which
      reads it once for all; the bundled one computes prompts. `gpu`: our own GPU kernel for decoding, likewise; XLA
      computes prompts.
    num_pages: the pages that a layer has.
    mesh: the kernels are given their share of the heads on each device; XLA splits its own form by itself.
    """

    kernels: str
    num_pages: int
    mesh: Mesh

    def cache_head_dim(self, head_dim: int) -> int:
        """The head dimension that the cache is allocated with; the kernels need whole vectors."""
        return cache_head_dim(head_dim) if self.kernels.startswith("tpu") else head_dim

    def prefill(self, page_tables: Int[Array, "S M"], positions: Int[Array, "S C"]) -> Attention:
        """Causal attention of C new tokens of each of S sequences; negative positions = no token (written nowhere)."""

        def attention(q, k, v, layer, cache):
            first_page = layer * self.num_pages
            cache = write(cache, k, v, page_tables, positions, first_page)
            if self.kernels.startswith("tpu"):
                return ragged_attention(q, cache, page_tables, positions, first_page, mesh=self.mesh), cache
            begin = jnp.zeros(len(page_tables), jnp.int32)
            part = partial_attention(q, cache, page_tables, begin, positions + 1, first_page)
            return normalise(part).astype(q.dtype), cache

        return attention

    def decode(
        self, page_tables: Int[Array, "S M"], positions: Int[Array, " S"], shared: Int[Array, " S"], tiles: Tiles
    ) -> Attention:
        """Attention of one new token of each sequence, whose first `shared` tokens are read through its tile."""
        at = positions[:, None]
        partial = partial_attention
        if self.kernels in KERNELS:
            partial = functools.partial(_partial_by, KERNELS[self.kernels], mesh=self.mesh)

        def attention(q, k, v, layer, cache):
            first_page = layer * self.num_pages
            cache = write(cache, k, v, page_tables, at, first_page)
            if self.kernels == "tpu":
                return ragged_attention(q, cache, page_tables, at, first_page, mesh=self.mesh), cache
            own = partial(q, cache, page_tables, shared, at + 1, first_page)
            ends = jnp.broadcast_to(tiles.length[:, None], tiles.members.shape)
            begin = jnp.zeros_like(tiles.length)
            prompt = partial(q[tiles.members, 0], cache, tiles.page_table, begin, ends, first_page)
            prompt = jax.tree.map(lambda x: x[tiles.tile, tiles.lane][:, None], prompt)
            return normalise(merge(own, prompt)).astype(q.dtype), cache

        return attention


KERNELS = {"tpu_shared": partial_tpu.partial_attention, "gpu": partial_gpu.partial_attention}


def _partial_by(kernel, q, cache, page_tables, begin, end, first_page, mesh) -> Part:
    """`partial_attention` by a kernel, for which all queries of an item have the same end."""
    return Part(*kernel(q, cache, page_tables, begin, end[:, 0], first_page, mesh=mesh))


def write(
    cache: Float[Array, "LP page KV2 D"], k, v, page_tables, positions: Int[Array, "S C"], first_page
) -> Float[Array, "LP page KV2 D"]:
    """The cache with the keys and values [S, C, kv_heads, D] of new tokens at their positions."""
    page_size = cache.shape[1]
    at = jnp.maximum(positions, 0)
    pages = jnp.where(positions < 0, TRASH_PAGE, jnp.take_along_axis(page_tables, at // page_size, axis=1))
    kv = jnp.stack([k, v], axis=3).reshape(*k.shape[:2], cache.shape[2], -1)
    kv = jnp.pad(kv, ((0, 0), (0, 0), (0, 0), (0, cache.shape[3] - kv.shape[3])))
    return cache.at[first_page + pages, at % page_size].set(kv.astype(cache.dtype))


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
    rows = queries * (heads // kv_heads)
    grouped = jnp.moveaxis(q.reshape(items, queries, kv_heads, -1, dim), 2, 1).reshape(items, kv_heads, rows, dim)

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

    shape = (padded, kv_heads, rows)
    parts_like = Part(jnp.zeros((*shape, dim)), jnp.full(shape, -jnp.inf), jnp.zeros(shape))
    live = jnp.max(jnp.where((end > begin[:, None]).any(1), jnp.arange(padded) + 1, 0))
    parts = jax.lax.fori_loop(0, (live + block - 1) // block, read_items, parts_like)

    def by_query(x):
        x = x[:items].reshape(items, kv_heads, queries, heads // kv_heads, *x.shape[3:])
        return jnp.moveaxis(x, 1, 2).reshape(items, queries, heads, *x.shape[4:])

    return Part(*map(by_query, parts))
