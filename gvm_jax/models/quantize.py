"""Parameters with int8 matrices, for a policy that is read far more often than it is changed.

A matrix W becomes round(W / s) in int8 with one float32 scale s for each output (symmetric, per channel): s is the
largest |W| over the contracted axes divided by 127, so that no entry is off by more than s/2.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from gvm_jax.models.qwen2 import Params

LARGEST = 127  # -128 is left out: the range is as wide on both sides of 0

# The axes of each matrix over which it is contracted, from the right: a stack of layers comes before them. The vectors
# of the vocabulary serve as rows to look up and as outputs of the head, with one scale a token in both.
CONTRACTED = {
    "embed_tokens": (-1,),
    "lm_head": (-1,),
    **{f"{name}_proj": (-3,) for name in "qkv"},  # [embed, heads, head_dim]
    "o_proj": (-3, -2),  # [heads, head_dim, embed]
    **{f"{name}_proj": (-2,) for name in ("gate", "up", "down")},
}


def quantize(params: Params) -> Params:
    """Float parameters as those of a model with `weight_dtype="int8"`; biases and norms stay as they are.

    Args:
      params: of a model with stacked or unstacked layers.
    """

    def quantized(name, node):
        if name in CONTRACTED:
            kernel, scale = quantize_matrix(node["kernel"], CONTRACTED[name])
            return {**node, "kernel": kernel, "scale": scale}
        return {key: quantized(key, child) for key, child in node.items()} if isinstance(node, dict) else node

    return quantized("", params)


def quantize_matrix(
    matrix: Float[Array, "..."], contracted: tuple[int, ...]
) -> tuple[Int8[Array, "..."], Float[Array, "..."]]:
    """(int8 matrix, scale of its outputs), matrix ≈ int8 · scale. An output of zeros has the scale 1.

    Args:
      matrix: any floats; finite.
      contracted: axes that share a scale.
    """
    matrix = matrix.astype(jnp.float32)
    largest = jnp.max(jnp.abs(matrix), axis=contracted, keepdims=True)
    scale = jnp.where(largest > 0, largest / LARGEST, 1.0)
    rounded = jnp.clip(jnp.round(matrix / scale), -LARGEST, LARGEST).astype(jnp.int8)
    return rounded, jnp.squeeze(scale, contracted)
