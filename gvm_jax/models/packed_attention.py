"""How queries meet keys where nothing is cached: causal attention within the sequences of packed rows.

Three implementations of the same sum, one of which `model.attention` names: XLA's, which is right on every device, and
the kernels of the accelerators' vendors, which keep no scores in memory: splash attention on TPUs, cuDNN's on GPUs.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from gvm_jax.config import ConfigError

# (q [B,L,H,D], k [B,L,K,D], v [B,L,K,D], layer index, cache) -> (mixed values [B,L,H,D], cache)
Attention = Callable[[Array, Array, Array, Array, Any], tuple[Array, Any]]
PLATFORM = {"splash": "tpu", "cudnn": "gpu"}  # that implementations run on; xla runs on all
IMPLEMENTATIONS = ("xla", *PLATFORM)
QUERY_BLOCK = 256  # xla: most queries whose scores against all keys are held at once
KEY_RANGES = 8  # xla: lengths that keys are cut to: more skip more of the masked half, and are more to compile
KERNEL_ROWS = 128  # the kernels take rows whose length is a multiple of it
SPLASH_BLOCKS = (512, 384, 256, KERNEL_ROWS)  # splash: queries and keys of a block, the first that divides a row


def resolve_attention(name: str, dtype, platform: str) -> str:
    """The implementation that `model.attention` stands for on a platform ("cpu", "gpu" or "tpu").

    "auto" is splash on TPUs, cudnn on GPUs where the model computes in bfloat16, else xla.

    Raises:
      ConfigError: the implementation does not run there, or not in this dtype.
    """
    low = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    if name == "auto":
        return {"tpu": "splash", "gpu": "cudnn" if low else "xla"}.get(platform, "xla")
    if name != "xla" and PLATFORM[name] != platform:
        raise ConfigError(
            f"model.attention = {name!r}: runs on {PLATFORM[name].upper()}s, and this is a {platform.upper()}; use "
            "'xla', which runs everywhere, or 'auto'"
        )
    if name == "cudnn" and not low:
        raise ConfigError(
            f"model.attention = 'cudnn': takes bfloat16, and the model computes in {jnp.dtype(dtype)}; set "
            "model.compute_dtype = 'bfloat16', or use 'xla'"
        )
    return name


def segment_attention(
    segments: Int[Array, "B L"], implementation: str = "xla", activation_sharding: NamedSharding | None = None
) -> Attention:
    """Causal attention within equal segment ids; needs no cache. Query head h reads KV head h // (H / K).

    Args:
      segments: ids; a place sees those before it in its row, and itself, that have its id.
      implementation: of `IMPLEMENTATIONS`.
      activation_sharding: how rows are split over devices, if they are: a kernel for one device is run on each.
    """
    if implementation == "xla":
        return _xla_attention(segments)
    length = segments.shape[1]
    padding = -length % KERNEL_ROWS
    # Padding is a segment of its own, which no query before it sees.
    padded = jnp.pad(jnp.asarray(segments), ((0, 0), (0, padding)), constant_values=-1)
    if implementation == "splash":
        attend = functools.partial(_on_each_device, _splash, activation_sharding)
    else:
        attend = _cudnn

    def attention(q, k, v, layer, cache):
        q, k, v = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q, k, v))
        return attend(q, k, v, padded)[:, :length], cache

    return attention


def _cudnn(q, k, v, segments) -> Float[Array, "B L H D"]:
    mask = segments[:, None, :, None] == segments[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="cudnn")


def _splash(q, k, v, segments, *, interpret: bool = False) -> Float[Array, "B L H D"]:
    """On one device; `interpret` runs it anywhere, slowly."""
    length, heads, head_dim = q.shape[1:]
    block = next(size for size in SPLASH_BLOCKS if length % size == 0)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
        block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    mask = splash.MultiHeadMask([splash.CausalMask((length, length))] * heads)
    kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    q = (q.astype(jnp.float32) * head_dim**-0.5).astype(q.dtype)  # the kernel does not scale
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    mixed = jax.vmap(kernel)(q, k, v, splash.SegmentIds(segments, segments))
    return mixed.swapaxes(1, 2).astype(q.dtype)


def _on_each_device(
    function: Callable, activation_sharding: NamedSharding | None, q, k, v, segments
) -> Float[Array, "B L H D"]:
    """`function(q, k, v, segments)` on each device's rows and heads.

    Rows stay whole where they are no multiple of the devices they would be split over. Where the axis "tensor" does not
    divide the KV heads, each query head gets a copy of its own; where it does not divide the query heads, devices
    compute the same.
    """
    if activation_sharding is None:
        return function(q, k, v, segments)
    mesh, batch = activation_sharding.mesh, activation_sharding.spec[0]
    tensor, heads = mesh.shape["tensor"], None
    batch = batch if q.shape[0] % math.prod(mesh.shape[axis] for axis in batch) == 0 else None
    if q.shape[2] % tensor == 0:
        heads = "tensor"
        if k.shape[2] % tensor:
            k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    spec = PartitionSpec(batch, None, heads)
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=(spec, spec, spec, PartitionSpec(batch)), out_specs=spec, check_vma=False
    )
    return mapped(q, k, v, segments)


def _xla_attention(segments: Int[Array, "B L"]) -> Attention:
    """Dense, for a block of queries at a time.

    The scores of a block are recomputed in the backward pass, so memory grows with L and not with its square.
    """
    length = segments.shape[1]
    blocks = -(-length // QUERY_BLOCK)
    block = -(-length // blocks)

    def attention(q, k, v, layer, cache):
        def attend(queries, query_segments, first, keys=length):
            causal = (first + jnp.arange(block))[:, None] >= jnp.arange(keys)
            mask = causal & (query_segments[:, :, None] == segments[:, None, :keys])
            return jax.nn.dot_product_attention(
                queries, k[:, :keys], v[:, :keys], mask=mask[:, None], implementation="xla"
            )

        if blocks == 1:
            return attend(q, segments, 0), cache

        def split(x):
            x = jnp.pad(x, ((0, 0), (0, blocks * block - length), *((0, 0),) * (x.ndim - 2)))
            return jnp.moveaxis(x.reshape(x.shape[0], blocks, block, *x.shape[2:]), 1, 0)

        parts = split(q), split(segments), jnp.arange(blocks) * block
        mixed, group = [], -(-blocks // KEY_RANGES)
        for begin in range(0, blocks, group):  # no query of a group sees a key beyond the group
            attend_to = jax.checkpoint(functools.partial(attend, keys=min((begin + group) * block, length)))
            mine = jax.tree.map(lambda x: x[begin : begin + group], parts)  # noqa: B023
            mixed.append(jax.lax.map(lambda part: attend_to(*part), mine))  # noqa: B023
        mixed = jnp.concatenate(mixed)
        return jnp.moveaxis(mixed, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, :length], cache

    return attention
