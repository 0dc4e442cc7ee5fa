"""Per-sample gradient norms ‖∇_W log π_T(y|x)‖₂ of chosen parameters W, without a sample's whole gradient.

The gradient is that of the log-probability summed over the response's tokens (arXiv 2505.02391, Algorithm 2), which
rejection sampling's estimator averages. Two methods give its norm:

- "vmap": the gradient itself, of any parameters; the reference.
- "gram": for the input embeddings E and the output head U [vocabulary, D], which few tokens reach by few positions.
  With δ_s the gradient at the embedded token x_s, h_t the state that predicts the response token y_t, and
  e_t = onehot(y_t) − softmax(U h_t / T), the gradients are Σ_s onehot(x_s) δ_sᵀ and Σ_t e_t h_tᵀ / T, so that

      ‖∇_E‖² = Σ_v ‖Σ_{s: x_s = v} δ_s‖²,  ‖∇_U‖² = Σ_{t,t'} (e_t·e_t') (h_t·h_t') / T²,
      ‖∇_E + ∇_U‖² = ‖∇_E‖² + ‖∇_U‖² + 2 Σ_{s,t} e_t[x_s] (h_t·δ_s) / T   where E and U are one matrix.

  One forward and one backward pass over a batch; the backward pass is that of the activations alone. Where U alone is
  measured (`parameters = "lm_head"` of an untied model), the forward pass is enough.

Only the wanted samples cost anything. "gram" measures them packed, several in a row (`packing.py`); in the sums above
s, t and t' are then pairs of tokens of one sample.
"""

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.config import ConfigError
from gvm_jax.models.logprobs import hidden_states, response_logprobs
from gvm_jax.models.qwen2 import Model, Params, Qwen2
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.training.packing import PackedRows, pack
from gvm_jax.training.prediction_errors import PredictionErrors, dot, prediction_errors

METHODS = ("gram", "vmap")


@dataclasses.dataclass(frozen=True)
class GradientNormSettings:
    """Static settings; the fields of `config.gradient_norms` under the same names."""

    parameters: str  # regular expression searched in the parameters' dotted paths
    chunk: int  # packed rows in one forward and backward pass; samples with "vmap"
    max_samples: int  # most samples measured in a call; 0 = all
    method: str = "gram"  # of METHODS

    @classmethod
    def from_config(cls, config) -> "GradientNormSettings":
        """From the section `config.gradient_norms`."""
        return cls(**{f.name: config[f.name] for f in dataclasses.fields(cls)})


class MeasuredParts(NamedTuple):
    """The parts of the network that "gram" measures; a tied matrix is both."""

    embeddings: bool  # of the input's tokens
    head: bool  # the rows of the output head


def measured_parts(params: Params, settings: GradientNormSettings) -> MeasuredParts | None:
    """The parts of these parameters (or abstract ones) that "gram" measures; None for "vmap".

    Raises:
      ConfigError: an unknown method, or parameters that the method cannot measure or that are not there.
    """
    if settings.method not in METHODS:
        raise ConfigError(f"gradient_norms.method = {settings.method!r}: must be one of {', '.join(METHODS)}")
    chosen, _ = split_params(params, settings.parameters)
    if settings.method == "vmap":
        return None
    others = [path for path in chosen if path not in ("embed_tokens.kernel", "lm_head.kernel")]
    if others:
        raise ConfigError(
            f"gradient_norms.parameters = {settings.parameters!r} with gradient_norms.method = {settings.method!r}: it "
            f"takes only embed_tokens and lm_head, found {', '.join(others)}; use gradient_norms.method = 'vmap'"
        )
    embeddings = "embed_tokens.kernel" in chosen
    return MeasuredParts(embeddings, "lm_head.kernel" in chosen or (embeddings and "lm_head" not in params))


def split_params(params: Params, pattern: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """(chosen, others) by dotted path; chosen are those in whose path the pattern is found.

    Raises:
      ConfigError: nothing is chosen.
    """
    flat = {
        ".".join(str(entry.key) for entry in path): value for path, value in jax.tree_util.tree_leaves_with_path(params)
    }
    chosen = {path: value for path, value in flat.items() if re.search(pattern, path)}
    if not chosen:
        raise ConfigError(
            f"gradient_norms.parameters = {pattern!r}: found in no parameter's path; the paths are {', '.join(flat)}"
        )
    return chosen, {path: value for path, value in flat.items() if path not in chosen}


def _join(flat: dict[str, Array]) -> Params:
    tree: Params = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def wanted_samples(accepted: Bool[Array, " N"], segments: Int[Array, " N"], max_samples: int) -> Bool[Array, " N"]:
    """Which rows to measure: the accepted ones; if they are more than `max_samples`, that many in turn over segments.

    Args:
      accepted: rows that count.
      segments: the prompt of each row, ascending.
      max_samples: static; 0 = all rows.
    """
    if not max_samples:
        return accepted
    count = jnp.cumsum(accepted)
    first = jnp.searchsorted(segments, segments, side="left")
    before = jnp.where(first > 0, count[first - 1], 0)
    turn = jnp.where(accepted, count - before, accepted.shape[0] + 1)  # 1 for a segment's first accepted row
    rows = jnp.argsort(turn)[:max_samples]
    return accepted & jnp.zeros_like(accepted).at[rows].set(True)


def per_sample_gradient_norms(
    model: Model,
    params: Params,
    rollouts: Rollouts,
    wanted: Bool[Array, " N"],
    settings: GradientNormSettings,
    temperature: float,
    logprob_chunk: int,
) -> Float[Array, " N"]:
    """‖∇ Σ_t log π_T(y_t)‖₂ with respect to the chosen parameters, 0 for rows that are not wanted.

    Args:
      model: the policy; its `remat` counts.
      params: of the model; like the next two, numpy's arrays or JAX's.
      rollouts: samples.
      wanted: which of them to measure; at most `settings.max_samples`, where that is not 0.
      settings: the method, which parameters, and how many rows a pass.
      temperature: of the sampling policy.
      logprob_chunk: as for `response_logprobs`, which "vmap" calls.

    Raises:
      ConfigError: as `measured_parts`.
    """
    measured = measured_parts(params, settings)
    # The passes are traced, and their rows index these: numpy takes no traced index.
    params, rollouts, wanted = jax.tree.map(jnp.asarray, (params, rollouts, wanted))
    samples = wanted.shape[0]
    most = min(settings.max_samples or samples, samples)
    chunk = min(settings.chunk, most)
    steps = -(-most // chunk)
    if measured is None:
        measure = _whole_gradients(model, params, settings.parameters, temperature, logprob_chunk)
        rows = jnp.argsort(~wanted, stable=True)[:most]
        rows = jnp.pad(jnp.where(wanted[rows], rows, samples), (0, steps * chunk - most), constant_values=samples)

        def chunk_norms(norms, rows):
            batch = jax.tree.map(lambda x: x[jnp.minimum(rows, samples - 1)], rollouts)
            return norms.at[rows].set(measure(batch), mode="drop")

        parts, needed = rows.reshape(steps, chunk), (rows < samples).reshape(steps, chunk).any(1)
    else:
        # Once for all chunks and layers; each use would cast what it reads again.
        module = model.bind(jax.tree.map(lambda p: p.astype(model.dtype), params))
        lengths = jnp.where(wanted, rollouts.prompt_lengths + rollouts.response_lengths, 0)
        begins = pack(lengths, jnp.arange(samples), steps * chunk, rollouts.tokens.shape[1])

        def chunk_norms(norms, begins):
            rows = PackedRows.fill(begins, rollouts)
            return norms + _factored_norms(module, measured, rows, temperature, samples)

        parts = begins.reshape(steps, chunk, -1)
        needed = (parts >= 0).any((1, 2))

    def step(norms, part):
        rows, needed = part
        return jax.lax.cond(needed, chunk_norms, lambda norms, _: norms, norms, rows), None

    return jax.lax.scan(step, jnp.zeros(samples), (parts, needed))[0]


def _whole_gradients(model: Model, params: Params, pattern: str, temperature: float, logprob_chunk: int):
    """A function from rollouts to norms: one gradient of the chosen parameters for each sample, all at once."""
    chosen, others = split_params(params, pattern)
    model = Model(model.config, model.dtype, model.remat)  # XLA's attention: cuDNN's has no gradient under vmap

    def norm(rollout: Rollouts):
        def log_likelihood(chosen):
            one = jax.tree.map(lambda x: x[None], rollout)
            return response_logprobs(
                model.bind(_join({**chosen, **others})), one.tokens, one.prompt_lengths, one.response_lengths,
                one.max_response, temperature, logprob_chunk,
            ).sum()  # fmt: skip

        gradient = jax.grad(log_likelihood)(chosen)
        return jnp.sqrt(sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in gradient.values()))

    return jax.vmap(norm)


def _factored_norms(
    module: Qwen2, parts: MeasuredParts, rows: PackedRows, temperature: float, samples: int
) -> Float[Array, " N"]:
    """The norms of all samples in the rows: a forward pass and, where the embeddings are measured, a backward one."""

    def predict(tap):
        return _before(hidden_states(module, rows.tokens, rows.positions, rows.sample, tap))

    head, inside, masked = _head(module), rows.response, module.config.masked_ids
    if not parts.embeddings:
        errors = prediction_errors(head, predict(None), rows.tokens, inside, temperature, masked, products=True)
        return _norms(module, parts, rows, errors, None, samples)
    tap = jnp.zeros((*rows.tokens.shape, module.config.hidden_size), module.dtype)
    states, backward = jax.vjp(predict, tap)
    errors = prediction_errors(head, states, rows.tokens, inside, temperature, masked, parts.head, vjp=True)
    (deltas,) = backward(errors.vjp.astype(states.dtype))
    return _norms(module, parts, rows, errors, deltas, samples)


def _norms(
    module: Qwen2,
    parts: MeasuredParts,
    rows: PackedRows,
    errors: PredictionErrors | None,
    deltas: Float[Array, "R L D"] | None,
    samples: int,
) -> Float[Array, " N"]:
    """The module's formula; `errors` are read where the head is measured, `deltas` where the embeddings are."""
    squares = jnp.zeros(rows.tokens.shape)  # by token; their sums over a sample are what is wanted
    together = rows.sample[:, :, None] == rows.sample[:, None]
    if parts.head:
        aligned = dot("btd,bsd->bts", errors.states, errors.states)
        squares += jnp.sum(jnp.where(together, errors.products * aligned, 0.0), 2) * errors.inverse**2
    if parts.embeddings:
        deltas = deltas.astype(jnp.float32)
        squares += jnp.sum(deltas * _sums_by_token(rows.tokens, rows.sample, deltas), 2)
    if parts.head and parts.embeddings and module.lm_head is None:
        aligned = dot("btd,bsd->bts", errors.states, deltas.astype(errors.states.dtype))
        crossed = errors.at(_head(module), rows.tokens) * aligned
        squares += 2.0 * jnp.sum(jnp.where(together, crossed, 0.0), 2) * errors.inverse
    total = jax.ops.segment_sum(squares.ravel(), rows.sample.ravel(), samples)
    return jnp.sqrt(jnp.maximum(total, 0.0))


@jax.vmap
def _sums_by_token(
    tokens: Int[Array, " L"], sample: Int[Array, " L"], values: Float[Array, "L D"]
) -> Float[Array, "L D"]:
    """For each place the sum of the values at all places with the same token in the same sample."""
    order = jnp.lexsort((tokens, sample))
    new = (jnp.diff(tokens[order], prepend=-1) != 0) | (jnp.diff(sample[order], prepend=-1) != 0)
    kind = jnp.zeros_like(tokens).at[order].set(jnp.cumsum(new) - 1)
    return jax.ops.segment_sum(values, kind, tokens.shape[0])[kind]


def _before(hidden: Float[Array, "R L D"]) -> Float[Array, "R L D"]:
    """For each token the state that predicts it: that of the place before."""
    return jnp.roll(hidden, 1, axis=1)


def _head(module: Qwen2) -> Float[Array, "V D"]:
    return (module.embed_tokens if module.lm_head is None else module.lm_head).kernel[...].astype(module.dtype)
