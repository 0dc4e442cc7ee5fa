"""Drawing the next token from logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from gvm_jax.models.logprobs import VOCABULARY_CHUNK, partition_sums


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

    Draws by inverting the CDF with one uniform number a row. A temperature of 0 takes the likeliest token. Never
    writes the probabilities: the logits are read twice, and then the one chunk of them that the draw falls into.
    """
    inverse = 1.0 / jnp.where(temperature > 0, temperature, 1.0)
    max_logit = logits.max(-1, keepdims=True)
    kept = logits
    if top_k or top_p < 1.0:
        kept = jnp.where(logits >= _least_kept(logits, max_logit, inverse, top_p, top_k), logits, -jnp.inf)
    sums = partition_sums(kept, max_logit, inverse)  # uncut, those of the token's log-probability too: computed once
    cumulative = jnp.cumsum(sums, axis=-1)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, ()))(keys)
    target = uniform * cumulative[:, -1]
    likeliest = jnp.argmax(logits, axis=-1)
    chunk = jnp.where(temperature > 0, _first_above(cumulative, sums, target), likeliest // VOCABULARY_CHUNK)
    before = jnp.take_along_axis(cumulative - sums, chunk[:, None], axis=1)[:, 0]
    at = chunk[:, None] * VOCABULARY_CHUNK + jnp.arange(VOCABULARY_CHUNK)
    inner = jnp.take_along_axis(kept, at, axis=1, mode="fill", fill_value=-jnp.inf)
    weights = jnp.exp((inner - max_logit) * inverse)
    drawn = _first_above(jnp.cumsum(weights, axis=-1), weights, target - before)
    return jnp.where(temperature > 0, chunk * VOCABULARY_CHUNK + drawn, likeliest).astype(jnp.int32)


def _least_kept(
    logits: Float[Array, "S V"], max_logit: Float[Array, "S 1"], inverse, top_p, top_k
) -> Float[Array, "S 1"]:
    """The smallest logit that the cuts keep: the k-th largest, then the last one of the nucleus."""
    least = jnp.full_like(max_logit, -jnp.inf)
    if top_k:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
    if top_p < 1.0:
        descending = -jnp.sort(-logits, axis=-1)
        weights = jnp.where(descending >= least, jnp.exp((descending - max_logit) * inverse), 0.0)
        before = jnp.cumsum(weights, axis=-1) - weights
        inside = (weights > 0) & (before < top_p * weights.sum(-1, keepdims=True))
        least = jnp.min(jnp.where(inside, descending, jnp.inf), axis=-1, keepdims=True)
    return least


def _first_above(cumulative, weights, target):
    """The first index whose cumulative weight exceeds the target; it always has a positive weight."""
    above = (cumulative > target[:, None]) & (weights > 0)
    last = weights.shape[1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)  # where rounding leaves none above
    return jnp.where(above.any(-1), jnp.argmax(above, axis=-1), last)
