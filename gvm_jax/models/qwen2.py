"""Qwen2.5 as one Flax NNX module, for training, prefill and decoding alike.

The layers' parameters are stacked on a leading axis and run by `lax.scan`, so the compile time does not grow with
the depth. How queries meet keys is the caller's: an `Attention`
callable is handed in, and the state it needs (the paged KV cache while sampling, nothing while training) is threaded
through the layers as `cache`.

Parameters are declared with logical axis names, which `sharding.py` maps to mesh axes. Computation runs in the
dtype of the embedded tokens (`dtype`); norms, rotary angles and logits are float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from gvm_jax.models.config import Qwen2Config, in_ranges
from gvm_jax.models.packed_attention import IMPLEMENTATIONS, Attention
from gvm_jax.runtime import cpu

# The results of a layer that are kept for the backward pass; it computes the others again.
REMAT = {
    "full": None,  # only the layer's input is kept
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # ... and the results of its matrix products
    "none": jax.checkpoint_policies.everything_saveable,  # all is kept
}
Params = dict[str, Any]  # nested dict of arrays: the module's parameters without the module


class Weight(nnx.Module):
    """A matrix as it is stored: a kernel, or an int8 kernel and a float32 scale of each output (`quantize.py`).

    Args:
      rngs: of the initial kernel.
      stack: sizes of the leading axes that number the layers, or ().
      shape: of the kernel of one layer.
      axes: logical names of `shape`.
      outputs: the slice of `shape` that a product with the kernel is left with; the other axes are contracted.
      weight_dtype: "int8", or None for a float kernel.
    """

    def __init__(self, rngs, stack, shape, axes, outputs, weight_dtype):
        layers = ("layers",) * len(stack)
        kernel = nnx.initializers.normal(0.02)(rngs.params(), (*stack, *shape))
        self.kernel = nnx.Param(kernel.astype(weight_dtype or kernel.dtype), axes=(*layers, *axes))
        scale = nnx.Param(jnp.ones((*stack, *shape[outputs])), axes=(*layers, *axes[outputs]))
        self.scale = scale if weight_dtype else None

    def scaled(self, y: Float[Array, "..."], at: Any = ...) -> Float[Array, "..."]:
        """Products with the kernel times their scales, in y's dtype; y itself where the kernel needs no scale.

        Args:
          y: its last axes are the outputs.
          at: the scales of these outputs, as an index.
        """
        return y if self.scale is None else (y * self.scale[at]).astype(y.dtype)


class Linear(Weight):
    """A linear map contracted over the kernel's first `contract` axes, with an optional bias over the others."""

    def __init__(self, rngs, stack, shape, axes, contract=1, bias=False, weight_dtype=None):
        super().__init__(rngs, stack, shape, axes, slice(contract, None), weight_dtype)
        bias_axes = (*("layers",) * len(stack), *axes[contract:])
        self.bias = nnx.Param(jnp.zeros((*stack, *shape[contract:])), axes=bias_axes) if bias else None
        self.contract = contract

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """x · kernel + bias, in x's dtype."""
        y = self.scaled(cpu.tensordot(x, self.kernel[...].astype(x.dtype), self.contract))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class Embedding(Weight):
    """A vector for each token of the vocabulary: the input's embeddings and the rows of the output head."""

    def __init__(self, rngs, config: Qwen2Config, weight_dtype):
        shape, axes = (config.vocab_size, config.hidden_size), ("vocab", "embed")
        super().__init__(rngs, (), shape, axes, slice(0, 1), weight_dtype)

    def lookup(self, tokens: Int[Array, "B L"], dtype) -> Float[Array, "B L D"]:
        """The tokens' vectors."""
        return self.scaled(self.kernel[...][tokens].astype(dtype), at=(tokens, None))

    def logits(self, hidden: Float[Array, "... D"], kernel: Float[Array, "V D"] | None = None) -> Float[Array, "... V"]:
        """hidden · vector of every token, in float32; `kernel` is this one's, where it is at hand already."""
        kernel = (self.kernel[...] if kernel is None else kernel).astype(hidden.dtype)
        return self.scaled(jnp.einsum("...d,vd->...v", hidden, kernel, preferred_element_type=jnp.float32))


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + eps) · scale, computed in float32."""

    def __init__(self, stack, size, eps):
        self.scale = nnx.Param(jnp.ones((*stack, size)), axes=(*("layers",) * len(stack), "embed"))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """The normed and scaled x, in x's dtype."""
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + self.eps)
        return (normed.astype(x.dtype)) * self.scale[...].astype(x.dtype)


class Block(nnx.Module):
    """One decoder layer; built with a leading stack axis, called on one slice of it."""

    def __init__(self, config: Qwen2Config, rngs, stack, weight_dtype=None):
        linear = functools.partial(Linear, rngs, stack, weight_dtype=weight_dtype)
        d, f, hd = config.hidden_size, config.intermediate_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        q_axes, kv_axes = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        self.input_layernorm = RMSNorm(stack, d, config.rms_norm_eps)
        self.q_proj = linear((d, heads, hd), q_axes, bias=True)
        self.k_proj = linear((d, kv_heads, hd), kv_axes, bias=True)
        self.v_proj = linear((d, kv_heads, hd), kv_axes, bias=True)
        self.o_proj = linear((heads, hd, d), ("heads", "head_dim", "embed"), contract=2)
        self.post_attention_layernorm = RMSNorm(stack, d, config.rms_norm_eps)
        self.gate_proj = linear((d, f), ("embed", "mlp"))
        self.up_proj = linear((d, f), ("embed", "mlp"))
        self.down_proj = linear((f, d), ("mlp", "embed"))

    def __call__(self, x: Float[Array, "B L D"], angles, layer: Int[Array, ""], attention: Attention, cache):
        """The layer's output and the cache."""
        h = self.input_layernorm(x)
        q, k, v = rotate(self.q_proj(h), angles), rotate(self.k_proj(h), angles), self.v_proj(h)
        mixed, cache = attention(q, k, v, layer, cache)
        x = x + self.o_proj(mixed)
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(jax.nn.silu(self.gate_proj(h)) * self.up_proj(h)), cache


class Qwen2(nnx.Module):
    """The decoder: token ids to final hidden states, and hidden states to logits."""

    def __init__(
        self,
        config: Qwen2Config,
        rngs: nnx.Rngs,
        dtype=jnp.float32,
        remat: str = "none",
        weight_dtype: str | None = None,
        activation_sharding: NamedSharding | None = None,
        attention: str = "xla",
    ):
        self.config, self.dtype, self.remat = config, dtype, remat
        self.activation_sharding, self.attention = activation_sharding, attention
        self.embed_tokens = Embedding(rngs, config, weight_dtype)
        make_layer = functools.partial(Block, config, rngs, weight_dtype=weight_dtype)
        self.layers = self.make_layers(make_layer, config.num_hidden_layers)
        self.norm = RMSNorm((), config.hidden_size, config.rms_norm_eps)
        self.lm_head = None if config.tie_word_embeddings else Embedding(rngs, config, weight_dtype)

    def __call__(
        self,
        tokens: Int[Array, "B L"],
        positions: Int[Array, "B L"],
        attention: Attention,
        cache: Any = None,
        tap: Float[Array, "B L D"] | None = None,
    ) -> tuple[Float[Array, "B L D"], Any]:
        """Final hidden states (after the last norm) and the cache as the layers left it.

        Args:
          tokens: ids.
          positions: of the tokens in their sequences.
          attention: how queries meet keys.
          cache: what the attention reads and writes.
          tap: zeros, added to the tokens' embeddings. The derivative with respect to it is the gradient of every
            single position, where that of the embeddings is summed over the positions of a token.
        """
        x = self.embed_tokens.lookup(tokens, self.dtype)
        if tap is not None:
            x = x + tap.astype(x.dtype)
        angles = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)
        x, cache = self.run_layers(self.by_rows(x), angles, attention, cache)
        return self.norm(x), cache

    def make_layers(self, make_layer: Callable[[tuple[int, ...]], Block], depth: int) -> nnx.Module:
        """All layers as one `Block`, stacked on a leading axis."""
        return make_layer((depth,))

    def run_layers(self, x: Float[Array, "B L D"], angles: Float[Array, "B L half"], attention: Attention, cache: Any):
        """The last layer's output, and the cache."""
        graphdef, stacked = nnx.split(self.layers)

        def layer_step(carry, layer_params):
            x, cache, layer = carry
            x, cache = nnx.merge(graphdef, layer_params)(x, angles, layer, attention, cache)
            return (self.by_rows(x), cache, layer + 1), None

        if self.remat != "none":
            layer_step = jax.checkpoint(layer_step, prevent_cse=False, policy=REMAT[self.remat])  # safe: inside a scan
        (x, cache, _), _ = jax.lax.scan(layer_step, (x, cache, jnp.int32(0)), stacked)
        return x, cache

    def by_rows(self, x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """x with its rows split as `activation_sharding` says, where they are a multiple of its devices.

        Left to itself the compiler splits activations as the embedding's columns are, and reduces every product over
        the devices instead of gathering the weights.
        """
        return jax.lax.with_sharding_constraint(x, self.activation_sharding) if self.splits(x.shape[0]) else x

    def splits(self, rows: int) -> bool:
        """Whether so many rows are split over devices, of which there are several."""
        if self.activation_sharding is None:
            return False
        devices = math.prod(self.activation_sharding.mesh.shape[axis] for axis in self.activation_sharding.spec[0])
        return devices > 1 and rows % devices == 0

    @property
    def head(self) -> Embedding:
        """What turns hidden states into logits."""
        return self.embed_tokens if self.lm_head is None else self.lm_head

    def logits(self, hidden: Float[Array, "... D"], kernel: Float[Array, "V D"] | None = None) -> Float[Array, "... V"]:
        """Next-token logits in float32, -inf for `config.masked_ids`; `kernel` is the head's, where it is at hand."""
        logits, masked = self.head.logits(hidden, kernel), self.config.masked_ids
        return jnp.where(in_ranges(jnp.arange(logits.shape[-1]), masked), -jnp.inf, logits) if masked else logits


class UnstackedQwen2(cpu.UnstackedLayers, Qwen2):
    """The decoder with its layers apart: parameters as `cpu.unstack` gives them."""


def rotary_angles(positions: Int[Array, "B L"], head_dim: int, theta: float) -> Float[Array, "B L half"]:
    """Angles position · theta^(-2i/head_dim) in float32 (RoPE, arXiv 2104.09864, eq. 15)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions[..., None].astype(jnp.float32) * frequencies


def rotate(x: Float[Array, "B L H D"], angles: Float[Array, "B L half"]) -> Float[Array, "B L H D"]:
    """Rotary embedding in the half-split layout that Hugging Face's Qwen2 uses."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Model:
    """A Qwen2 network as pure functions of its parameters.

    `bind(params)` gives the NNX module with these arrays in it; `params` is a nested dict and goes through jit, grad,
    optax and checkpoints as any pytree does.

    Args:
      config: the network.
      dtype: of the computation.
      remat: what the backward pass computes again, a name of `REMAT` (stacked layers only).
      network: the module that is built.
      weight_dtype: "int8" for parameters as `quantize` gives them; None for floats.
      activation_sharding: of the rows of activations over devices (`sharding.batch_sharding`); None leaves it to XLA.
      attention: that of sequences without a cache, a name of `packed_attention.IMPLEMENTATIONS`.

    Raises:
      ValueError: another `weight_dtype`, `remat` or `attention`.
    """

    def __init__(
        self,
        config: Qwen2Config,
        dtype=jnp.float32,
        remat: str = "none",
        weight_dtype: str | None = None,
        activation_sharding: NamedSharding | None = None,
        attention: str = "xla",
        network: type[Qwen2] = Qwen2,
    ):
        if weight_dtype not in (None, "int8"):
            raise ValueError(f"weight_dtype = {weight_dtype!r}: must be 'int8', or None for float parameters")
        if remat not in REMAT:
            raise ValueError(f"remat = {remat!r}: must be one of {', '.join(REMAT)}")
        if attention not in IMPLEMENTATIONS:
            raise ValueError(f"attention = {attention!r}: must be one of {', '.join(IMPLEMENTATIONS)}")
        self.config, self.dtype, self.remat, self._weight_dtype = config, jnp.dtype(dtype), remat, weight_dtype
        self.attention = attention

        def build(seed):
            return network(config, nnx.Rngs(seed), self.dtype, remat, weight_dtype, activation_sharding, attention)

        self._build = build
        self._graphdef, state = nnx.split(nnx.eval_shape(lambda: build(0)))
        self.abstract_params: Params = nnx.to_pure_dict(state)
        self.axes: Params = nnx.to_pure_dict(jax.tree.map(lambda v: v.replace(v.axes), state, is_leaf=_is_param))

    def bind(self, params: Params) -> Qwen2:
        """The module with `params` as its parameters."""
        return nnx.merge(self._graphdef, params)

    def cast(self, params: Params) -> Params:
        """The parameters with the layers' rounded to `dtype` once, as each use would round them.

        It pays for several passes with the same parameters. The embeddings stay float32, since their gradient is a sum
        over tokens.
        """
        return {**params, "layers": jax.tree.map(lambda x: x.astype(self.dtype), params["layers"])}

    def init(self, seed: int) -> Params:
        """Random parameters: normal(0, 0.02) matrices, zero biases, unit norms.

        Raises:
          ValueError: for int8 parameters.
        """
        if self._weight_dtype:
            raise ValueError(f"weight_dtype = {self._weight_dtype!r}: quantize the parameters of a float model instead")
        return nnx.to_pure_dict(nnx.state(self._build(seed), nnx.Param))


def _is_param(x) -> bool:
    return isinstance(x, nnx.Variable)
