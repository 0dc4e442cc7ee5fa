"""Drawing the next token from logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

_CHUNK = 128  # the inverse CDF is searched chunk by chunk: short sums keep float32 exact enough for 150k tokens


def sample_key(key: Key[Array, ""], prompt_id: Int[Array, ""], sample: Int[Array, ""]) -> Key[Array, ""]:
    """The key of one sample: a function of the caller's key (seed, step), the prompt's id and the sample's index."""
    return jax.random.fold_in(jax.random.fold_in(key, prompt_id), sample)


def sample_tokens(
    logits: Float[Array, "S V"],
    keys: Key[Array, " S"],
    temperature: Float[Array, ""],
    top_p: float = 1.0,
    top_k: int = 0,
) -> Int[Array, " S"]:
    """One token a row from softmax(logits / temperature), cut to the nucleus and the k likeliest tokens.

    Draws by inverting the CDF with one uniform number a row. A temperature of 0 takes the likeliest token.
    """
    greedy = jnp.argmax(logits, axis=-1)
    probabilities = jax.nn.softmax(logits / jnp.where(temperature > 0, temperature, 1.0), axis=-1)
    if top_k:
        kept = jax.lax.top_k(probabilities, min(top_k, logits.shape[-1]))[0]
        probabilities = jnp.where(probabilities >= kept[:, -1:], probabilities, 0.0)
    if top_p < 1.0:
        descending = -jnp.sort(-probabilities, axis=-1)
        before = jnp.cumsum(descending, axis=-1) - descending
        total = descending.sum(-1, keepdims=True)
        smallest = jnp.min(jnp.where(before < top_p * total, descending, jnp.inf), axis=-1, keepdims=True)
        probabilities = jnp.where(probabilities >= smallest, probabilities, 0.0)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, ()))(keys)
    return jnp.where(temperature > 0, _invert_cdf(probabilities, uniform), greedy).astype(jnp.int32)


def _invert_cdf(weights: Float[Array, "S V"], uniform: Float[Array, " S"]) -> Int[Array, " S"]:
    """The first index whose cumulative weight exceeds uniform · total; it always has a positive weight."""
    rows, size = weights.shape
    chunks = jnp.pad(weights, ((0, 0), (0, -size % _CHUNK))).reshape(rows, -1, _CHUNK)
    sums = chunks.sum(-1)
    cumulative = jnp.cumsum(sums, axis=-1)
    target = uniform * cumulative[:, -1]
    chunk = _first_above(cumulative, sums, target)
    pick = chunk[:, None]
    before = jnp.take_along_axis(cumulative - sums, pick, axis=1)[:, 0]
    inner = jnp.take_along_axis(chunks, pick[..., None], axis=1)[:, 0]
    return chunk * _CHUNK + _first_above(jnp.cumsum(inner, axis=-1), inner, target - before)


def _first_above(cumulative, weights, target):
    above = (cumulative > target[:, None]) & (weights > 0)
    last = weights.shape[1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)  # where rounding leaves none above
    return jnp.where(above.any(-1), jnp.argmax(above, axis=-1), last)
