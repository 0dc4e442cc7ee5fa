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
    positions: Int[Array, "B L"],
    segments: Int[Array, "B L"],
    tap: Float[Array, "B L D"] | None = None,
) -> Float[Array, "B L D"]:
    """Final hidden states of rows of sequences side by side.

    Args:
      model: the network.
      tokens: ids.
      positions: of each token in its own sequence.
      segments: numbers that are equal within a sequence; a token sees those before it of its own.
      tap: as in `Qwen2.__call__`.
    """
    return model(tokens, positions, segment_attention(segments), tap=tap)[0]


def token_logprobs(
    model: Qwen2,
    hidden: Float[Array, "B L D"],
    tokens: Int[Array, "B L"],
    wanted: Bool[Array, "B L"],
    temperature: float,
    chunk: int,
) -> Float[Array, "B L"]:
    """log π_T of the wanted tokens, 0 of the others.

    The wanted tokens of a row are taken together, and logits exist for `chunk` of each row at a time, in the forward
    and (recomputed) in the backward pass: [B, L, vocabulary] is never in memory, and tokens that are not wanted, those
    of prompts say, cost nothing.

    Args:
      model: whose head turns states into logits.
      hidden: states; that at position t predicts token t + 1.
      tokens: ids.
      wanted: which to predict; never a row's first.
      temperature: T.
      chunk: static.
    """
    most = tokens.shape[1] - 1
    chunk = min(chunk, most)
    steps = -(-most // chunk)
    needed = wanted.sum(1).max()

    def row_logprobs(kernel, hidden, tokens, wanted, needed):
        order = 1 + jnp.argsort(~wanted[:, 1:], axis=1, stable=True)  # positions, the wanted ones first
        order = jnp.pad(order, ((0, 0), (0, steps * chunk - most)), constant_values=1)
        inside = jnp.arange(steps * chunk) < wanted.sum(1, keepdims=True)

        @jax.checkpoint
        def chunk_logprobs(part):
            first, at, inside = part

            def compute():
                states = jnp.take_along_axis(hidden, (at - 1)[..., None], axis=1)
                chosen = jnp.take_along_axis(tokens, at, axis=1)
                return jnp.where(inside, select_logprobs(model.head.logits(states, kernel), chosen, temperature), 0.0)

            nothing = jnp.where(inside, 0.0, 0.0)  # zeros that vary over devices as `compute`'s result does
            return jax.lax.cond(first < needed, compute, lambda: nothing)

        def split(x):
            return jnp.moveaxis(x.reshape(x.shape[0], steps, chunk), 1, 0)

        found = jax.lax.map(chunk_logprobs, (jnp.arange(steps) * chunk, split(order), split(inside)))
        found = jnp.moveaxis(found, 0, 1).reshape(tokens.shape[0], -1)
        place = jnp.where(inside, order, tokens.shape[1])  # out of range: dropped
        return jax.vmap(lambda values, at: jnp.zeros(tokens.shape[1]).at[at].set(values, mode="drop"))(found, place)

    kernel, rows = model.head.kernel[...], (hidden, tokens, wanted)
    if not model.splits(tokens.shape[0]):
        return row_logprobs(kernel, *rows, needed)

    def gather(kernel, *rows):
        # Once for all chunks, where the compiler would gather the head, and reduce its gradient, for each.
        kernel = jax.lax.all_gather(kernel.astype(model.dtype), "fsdp", axis=1, tiled=True)
        return row_logprobs(kernel.astype(jnp.float32), *rows)  # float32: in it the chunks' gradients are summed

    split = model.rows.spec
    return jax.shard_map(
        gather, mesh=model.rows.mesh, in_specs=(PartitionSpec(None, "fsdp"), *(split,) * 3, PartitionSpec()),
        out_specs=split, axis_names={*split[0]},
    )(kernel, *rows, needed)  # fmt: skip


def response_logprobs(
    model: Qwen2,
    tokens: Int[Array, "B L"],
    prompt_lengths: Int[Array, " B"],
    response_lengths: Int[Array, " B"],
    max_response: int,
    temperature: float,
    chunk: int,
) -> Float[Array, "B T"]:
    """log π_T of every response token, T = max_response positions a row, 0 beyond the response.

    A row of `tokens` is prompt, response, padding; `chunk` as for `token_logprobs`.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    begins, ends = prompt_lengths[:, None], (prompt_lengths + response_lengths)[:, None]
    hidden = hidden_states(model, tokens, positions, (positions < ends).astype(jnp.int32))
    wanted = (positions >= begins) & (positions < ends)
    logprobs = token_logprobs(model, hidden, tokens, wanted, temperature, chunk)
    offsets = jnp.arange(max_response)
    at = jnp.minimum(begins + offsets, tokens.shape[1] - 1)
    return jnp.where(offsets < response_lengths[:, None], jnp.take_along_axis(logprobs, at, axis=1), 0.0)
