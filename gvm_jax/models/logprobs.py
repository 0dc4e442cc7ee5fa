"""The one log-probability of the project: sampling, training, the reference model and gradient norms use it.

log π_T(y | x) = z_y / T − logsumexp(z / T), with the logits z in float32 and T the sampling temperature. Masked
tokens have z = −∞ (`Qwen2.logits`).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.models.packed_attention import segment_attention
from gvm_jax.models.qwen2 import Qwen2
from gvm_jax.runtime.cpu import outer

VOCABULARY_CHUNK = 128


def partition_sums(
    logits: Float[Array, "... V"], max_logit: Float[Array, "... 1"], inverse: Float[Array, ""]
) -> Float[Array, "... chunks"]:
    """Σ exp((z - max_logit) · inverse) over each `VOCABULARY_CHUNK` logits; short sums keep float32 exact enough."""
    padding = [(0, 0)] * (logits.ndim - 1) + [(0, -logits.shape[-1] % VOCABULARY_CHUNK)]
    chunks = jnp.pad(logits, padding, constant_values=-jnp.inf).reshape(*logits.shape[:-1], -1, VOCABULARY_CHUNK)
    return jnp.exp((chunks - max_logit[..., None]) * inverse).sum(-1)


def _softmax(logits: Float[Array, "... V"], temperature: float | Float[Array, ""]):
    """(1 / T, the largest logit, Σ exp((z - largest) / T)), with T = 1 for a temperature of 0.

    Logits are scaled where they are used: a scaled copy would be one more array of the vocabulary's size.
    """
    inverse = 1.0 / jnp.where(temperature > 0, temperature, 1.0)
    max_logit = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    return inverse, max_logit, partition_sums(logits, max_logit, inverse).sum(-1)


def select_logprobs(
    logits: Float[Array, "... V"], tokens: Int[Array, "..."], temperature: float | Float[Array, ""]
) -> Float[Array, "..."]:
    """log π_T of `tokens`. A temperature of 0 (greedy) reports the untempered log-probability."""
    inverse, max_logit, sum_exp = _softmax(logits, temperature)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)
    return ((chosen - max_logit) * inverse)[..., 0] - jnp.log(sum_exp)


def entropies(logits: Float[Array, "... V"], temperature: float | Float[Array, ""]) -> Float[Array, "..."]:
    """−Σ π_T log π_T in nats, of the untempered policy at a temperature of 0."""
    inverse, max_logit, sum_exp = _softmax(logits, temperature)
    scaled = (logits - max_logit) * inverse
    weights = jnp.exp(scaled)
    # 0·log 0 = 0: the logits of masked tokens are -inf.
    return jnp.log(sum_exp) - jnp.where(weights > 0, weights * scaled, 0.0).sum(-1) / sum_exp


def logit_gradients(
    logits: Float[Array, "... V"],
    tokens: Int[Array, "..."],
    cotangents: Float[Array, "..."],
    temperature: float | Float[Array, ""],
) -> Float[Array, "... V"]:
    """Σ cotangent · ∂ log π_T / ∂ z of `select_logprobs`: cotangent · (onehot(y) − softmax(z / T)) / T."""
    inverse, max_logit, sum_exp = _softmax(logits, temperature)
    chosen = jnp.arange(logits.shape[-1]) == tokens[..., None]
    cotangents = cotangents * inverse
    return chosen * cotangents[..., None] - jnp.exp((logits - max_logit) * inverse) * (cotangents / sum_exp)[..., None]


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
    attention = segment_attention(segments, model.attention, model.activation_sharding)
    return model(tokens, positions, attention, tap=tap)[0]


def token_logprobs(
    model: Qwen2,
    hidden: Float[Array, "B L D"],
    tokens: Int[Array, "B L"],
    wanted: Bool[Array, "B L"],
    temperature: float,
    chunk: int,
) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
    """log π_T of the wanted tokens and the entropy of π_T, in nats, where they were drawn; 0 elsewhere.

    Entropies have no gradient.

    Logits exist for `chunk` wanted tokens at a time, in the forward and (recomputed) in the backward pass:
    [B, L, vocabulary] is never in memory, and other tokens, such as those of prompts, cost nothing.

    Args:
      model: whose head turns states into logits.
      hidden: states; that at position t predicts token t + 1.
      tokens: ids.
      wanted: which to predict; never a row's first.
      temperature: T.
      chunk: static; of the rows of a device, where a mesh splits them.
    """
    chunks = _Chunks(model, temperature, min(chunk, tokens.size))
    tokens, wanted = jnp.asarray(tokens), jnp.asarray(wanted)  # numpy's cannot be indexed in a loop
    kernel, rows = model.head.kernel[...], (hidden, tokens, wanted)
    if not model.splits(tokens.shape[0]):
        return chunks.logprobs(kernel, *rows, wanted.sum())
    split = model.activation_sharding.spec
    devices = math.prod(model.activation_sharding.mesh.shape[axis] for axis in split[0])
    most = wanted.reshape(devices, -1).sum(1).max()
    chunks = dataclasses.replace(chunks, manual_axes=split[0])

    def gather(kernel, *rows):
        # Once for all chunks, where the compiler would gather the head, and reduce its gradient, for each.
        kernel = jax.lax.all_gather(kernel.astype(model.dtype), "fsdp", axis=1, tiled=True)
        kernel = kernel.astype(jnp.float32)  # in it the chunks' gradients are summed
        kernel = chunks.vary(kernel, known=("fsdp",))
        return chunks.logprobs(kernel, *rows)

    return jax.shard_map(
        gather, mesh=model.activation_sharding.mesh,
        in_specs=(PartitionSpec(None, "fsdp"), *(split,) * 3, PartitionSpec()),
        out_specs=(split, split), axis_names={*split[0]},
    )(kernel, *rows, most)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """Log-probabilities of wanted tokens, so many at a time.

    The loops end with the last chunk that is needed, which reverse-mode differentiation of a loop does not allow: hence
    a backward pass of our own. It holds one gradient of the head's kernel and adds each chunk's to it.
    """

    model: Qwen2
    temperature: float
    chunk: int
    manual_axes: tuple[str, ...] = ()  # mesh axes over which the rows are split by hand

    def vary(self, x: Array, known: tuple[str, ...] = ()) -> Array:
        """x as an array that differs over the devices, as what is computed from rows does; `known` axes it has."""
        missing = tuple(axis for axis in self.manual_axes if axis not in known)
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    def logprobs(self, kernel, hidden, tokens, wanted, most) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
        """`token_logprobs`, for rows that are all here; `most` is the most wanted tokens of any device."""
        size, dtype = tokens.size, self.model.dtype
        order = jnp.argsort(~wanted.ravel(), stable=True)  # places, the wanted ones first
        order = jnp.pad(order, (0, -size % self.chunk))
        targets = tokens.ravel(), order, wanted.sum(), -(-most // self.chunk)

        # Arrays that a function with a backward pass of its own finds around it cannot leave a shard_map.
        @jax.custom_vjp
        def forward(kernel, states, targets):
            kernel = kernel.astype(dtype)

            def add(i, found):
                at, inside, chosen = self._part(targets, i)
                logits = self.model.logits(states[before(at)], kernel)
                values = select_logprobs(logits, chosen, self.temperature), entropies(logits, self.temperature)
                # Tokens that are not wanted get a place out of range, which is dropped.
                return found.at[:, jnp.where(inside, at, size)].set(jnp.stack(values), mode="drop")

            found = jax.lax.fori_loop(0, targets[-1], add, self.vary(jnp.zeros((2, size))))
            return found[0], found[1]

        def backward(known, cotangents):
            (kernel, states, targets), (cotangents, _) = known, cotangents
            rounded = kernel.astype(dtype)

            def add(i, gradients):
                at, inside, chosen = self._part(targets, i)
                mine = states[before(at)]
                logits = self.model.logits(mine, rounded)
                of_logits = logit_gradients(logits, chosen, jnp.where(inside, cotangents[at], 0.0), self.temperature)
                of_logits = of_logits.astype(dtype)
                return gradients[0] + outer(of_logits, mine), gradients[1].at[before(at)].add(of_logits @ rounded)

            zeros = [self.vary(jnp.zeros(x.shape, x.dtype)) for x in (kernel, states)]
            return *jax.lax.fori_loop(0, targets[-1], add, tuple(zeros)), None

        def before(at):
            """Places of the states that predict these tokens; any for a first one, which is not wanted."""
            return jnp.maximum(at - 1, 0)

        forward.defvjp(lambda *inputs: (forward(*inputs), inputs), backward)
        logprobs, entropy = forward(kernel, hidden.reshape(size, -1), targets)
        return logprobs.reshape(tokens.shape), jax.lax.stop_gradient(entropy.reshape(tokens.shape))

    def _part(self, targets, i):
        """(places, which are wanted, tokens) of a chunk."""
        tokens, order, count, _ = targets
        at = jax.lax.dynamic_slice_in_dim(order, i * self.chunk, self.chunk)
        return at, i * self.chunk + jnp.arange(self.chunk) < count, tokens[at]


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
    logprobs, _ = token_logprobs(model, hidden, tokens, wanted, temperature, chunk)
    offsets = jnp.arange(max_response)
    at = jnp.minimum(begins + offsets, tokens.shape[1] - 1)
    return jnp.where(offsets < response_lengths[:, None], jnp.take_along_axis(logprobs, at, axis=1), 0.0)
