"""Attention over the paged KV cache: one contract, and the choice of kernels.

The cache is one array [layers · pages, page_size, 2 · kv_heads, head_dim], keys at even and values at odd heads; layer
l owns the pages from l · pages on. One array, so that the scan over layers updates it in place; the pages of a layer
are what the TPU kernels read.

All samples of a prompt attend to the same prompt, so a decode step reads it once for all of them and merges that part
of each softmax with the part over the sample's own tokens (Hydragen, arXiv 2402.05099, section 3.1). With n samples
of a prompt of P tokens and r tokens of their own each, a layer reads P + n·r instead of n·(P + r) keys and values.
"""

import dataclasses
import functools

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
from gvm_jax.rollout.kernels.partial_xla import Part, merge, normalise, partial_attention
from gvm_jax.rollout.kernels.ragged_tpu import ragged_attention
from gvm_jax.rollout.pages import TRASH_PAGE

TILE = 8  # samples of a prompt that read its keys together


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
