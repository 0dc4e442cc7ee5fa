"""The one log-probability of the project: sampling, training, the reference model and gradient norms use it.

log π_T(y | x) = z_y / T − logsumexp(z / T), with the logits z in float32 and T the sampling temperature.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.models.qwen2 import Qwen2, segment_attention

VOCABULARY_CHUNK = 128


def partition_sums(
    logits: Float[Array, "... V"], peak: Float[Array, "... 1"], inverse: Float[Array, ""]
) -> Float[Array, "... chunks"]:
    """Σ exp((z - peak) · inverse) over each `VOCABULARY_CHUNK` logits; short sums keep float32 exact enough."""
    padding = [(0, 0)] * (logits.ndim - 1) + [(0, -logits.shape[-1] % VOCABULARY_CHUNK)]
    chunks = jnp.pad(logits, padding, constant_values=-jnp.inf).reshape(*logits.shape[:-1], -1, VOCABULARY_CHUNK)
    return jnp.exp((chunks - peak[..., None]) * inverse).sum(-1)


def select_logprobs(
    logits: Float[Array, "... V"], tokens: Int[Array, "..."], temperature: float | Float[Array, ""]
) -> Float[Array, "..."]:
    """log π_T of `tokens`. A temperature of 0 (greedy) reports the untempered log-probability."""
    inverse = 1.0 / jnp.where(temperature > 0, temperature, 1.0)
    # Scaled where it is used: a scaled copy would be one more array of the vocabulary's size.
    peak = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    total = partition_sums(logits, peak, inverse).sum(-1)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)
    return ((chosen - peak) * inverse)[..., 0] - jnp.log(total)


def hidden_states(
    model: Qwen2,
    tokens: Int[Array, "B L"],
    prompt_lengths: Int[Array, " B"],
    response_lengths: Int[Array, " B"],
    tap: Float[Array, "B L D"] | None = None,
) -> Float[Array, "B L D"]:
    """Final hidden states of rows of prompt, response, padding; `tap` as in `Qwen2.__call__`."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = (positions < (prompt_lengths + response_lengths)[:, None]).astype(jnp.int32)
    return model(tokens, positions, segment_attention(segments), tap=tap)[0]


def predictions(
    hidden: Float[Array, "B L D"],
    tokens: Int[Array, "B L"],
    prompt_lengths: Int[Array, " B"],
    response_lengths: Int[Array, " B"],
    offsets: Int[Array, " T"],
) -> tuple[Float[Array, "B T D"], Int[Array, "B T"], Bool[Array, "B T"]]:
    """The states that predict the response tokens at these offsets, the tokens, and which are inside the response."""
    # The hidden state at position t predicts token t + 1; rows differ in where their response begins.
    at = jnp.clip(prompt_lengths[:, None] + offsets, 1, tokens.shape[1] - 1)
    states = jnp.take_along_axis(hidden, (at - 1)[..., None], axis=1)
    return states, jnp.take_along_axis(tokens, at, axis=1), offsets < response_lengths[:, None]


def response_logprobs(
    model: Qwen2,
    tokens: Int[Array, "B L"],
    prompt_lengths: Int[Array, " B"],
    response_lengths: Int[Array, " B"],
    max_response: int,
    temperature: float,
    chunk: int,
    hidden: Float[Array, "B L D"] | None = None,
) -> Float[Array, "B T"]:
    """log π_T of every response token, T = max_response positions a row, 0 beyond the response.

    A row of `tokens` is prompt, response, padding. Logits exist for `chunk` response positions at a time, in the
    forward and (recomputed) in the backward pass, so [B, L, vocabulary] is never in memory. `hidden` is what
    `hidden_states` gave for these rows, where it is known already.
    """
    if hidden is None:
        hidden = hidden_states(model, tokens, prompt_lengths, response_lengths)
    chunk = min(chunk, max_response)
    steps = -(-max_response // chunk)

    def row_logprobs(kernel, hidden, tokens, prompt_lengths, response_lengths):
        @jax.checkpoint
        def chunk_logprobs(offsets):
            states, chosen, inside = predictions(hidden, tokens, prompt_lengths, response_lengths, offsets)
            return jnp.where(inside, select_logprobs(model.head.logits(states, kernel), chosen, temperature), 0.0)

        logprobs = jax.lax.map(chunk_logprobs, jnp.arange(steps * chunk).reshape(steps, chunk))  # [steps, B, chunk]
        return jnp.moveaxis(logprobs, 0, 1).reshape(tokens.shape[0], -1)[:, :max_response]

    kernel, rows = model.head.kernel[...], (hidden, tokens, prompt_lengths, response_lengths)
    if not model.splits(tokens.shape[0]):
        return row_logprobs(kernel, *rows)

    def gather(kernel, *rows):
        # Once for all chunks, where the compiler would gather the head, and reduce its gradient, for each.
        kernel = jax.lax.all_gather(kernel.astype(model.dtype), "fsdp", axis=1, tiled=True)
        return row_logprobs(kernel.astype(jnp.float32), *rows)  # float32: in it the chunks' gradients are summed

    split = model.rows.spec
    return jax.shard_map(
        gather, mesh=model.rows.mesh, in_specs=(PartitionSpec(None, "fsdp"), *(split,) * 4), out_specs=split,
        axis_names={*split[0]},
    )(kernel, *rows)  # fmt: skip
