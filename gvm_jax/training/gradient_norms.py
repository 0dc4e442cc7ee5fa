"""Per-sample gradient norms ‖∇_W log π_T(y|x)‖₂ of chosen parameters W, without a sample's whole gradient.

The gradient is that of the log-probability summed over the response's tokens (arXiv 2505.02391, Algorithm 2), which
rejection sampling's estimator averages. Four methods give its norm:

- "vmap": the gradient itself, of any parameters; the reference.
- "gram": for the input embeddings E and the output head U [vocabulary, D], which few tokens reach by few positions.
  With δ_s the gradient at the embedded token x_s, h_t the state that predicts the response token y_t, and
  e_t = onehot(y_t) − softmax(U h_t / T), the gradients are Σ_s onehot(x_s) δ_sᵀ and Σ_t e_t h_tᵀ / T, so that

      ‖∇_E‖² = Σ_v ‖Σ_{s: x_s = v} δ_s‖²,  ‖∇_U‖² = Σ_{t,t'} (e_t·e_t') (h_t·h_t') / T²,
      ‖∇_E + ∇_U‖² = ‖∇_E‖² + ‖∇_U‖² + 2 Σ_{s,t} e_t[x_s] (h_t·δ_s) / T   where E and U are one matrix.

  One forward and one backward pass over a batch; the backward pass is that of the activations alone.
- "lm_head": ‖∇_U‖ by the same formula, which takes the forward pass alone. Of a tied matrix it is the output's part.
- "update": as "gram", with the δ_s of the training loss: of the samples of a step's first update, whose importance
  ratios are 1. It costs one more product with the output head.

Only the wanted samples cost anything. All methods but "vmap" measure them packed, several in a row (`packing.py`); in
the sums above s, t and t' are then pairs of tokens of one sample.
"""

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.config import ConfigError
from gvm_jax.models.config import in_ranges
from gvm_jax.models.logprobs import hidden_states, response_logprobs
from gvm_jax.models.qwen2 import Model, Params, Qwen2
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.training.packing import PackedRows, pack

METHODS = ("gram", "vmap", "lm_head", "update")
VOCABULARY_BLOCK = 2048  # tokens whose logits are held at once, of all positions of a pass
PRODUCT_BLOCK = 512  # rows of the symmetric matrix of products that are computed together, up to their diagonal


@dataclasses.dataclass(frozen=True)
class GradientNormSettings:
    """Static settings; the fields of `config.gradient_norms` under the same names."""

    parameters: str  # regular expression searched in the parameters' dotted paths; "lm_head" does not read it
    chunk: int  # packed rows in one forward and backward pass; samples with "vmap"
    max_samples: int  # most samples measured in a call; 0 = all
    method: str = "gram"  # of METHODS

    @classmethod
    def from_config(cls, config) -> "GradientNormSettings":
        """From the section `config.gradient_norms`."""
        return cls(**{f.name: config[f.name] for f in dataclasses.fields(cls)})


class Paths(NamedTuple):
    """By which ways the measured parameters act on the log-probability."""

    embeddings: bool  # as the vectors of the input's tokens
    head: bool  # as the rows of the output head


def measured_paths(params: Params, settings: GradientNormSettings) -> Paths | None:
    """What the methods "gram" and "lm_head" measure of these parameters (or abstract ones); None for "vmap".

    Raises:
      ConfigError: an unknown method, or parameters that the method cannot measure or that are not there.
    """
    if settings.method not in METHODS:
        raise ConfigError(f"gradient_norms.method = {settings.method!r}: must be one of {', '.join(METHODS)}")
    if settings.method == "lm_head":
        return Paths(embeddings=False, head=True)
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
    return Paths(embeddings, "lm_head.kernel" in chosen or (embeddings and "lm_head" not in params))


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
      model: whose `remat` counts for "vmap" and "gram".
      params: of the model; like the next two, numpy's arrays or JAX's.
      rollouts: samples.
      wanted: which of them to measure; at most `settings.max_samples`, where that is not 0.
      settings: the method, which parameters, and how many rows a pass.
      temperature: of the sampling policy.
      logprob_chunk: as for `response_logprobs`, which "vmap" calls.

    Raises:
      ConfigError: as `measured_paths`.
    """
    paths = measured_paths(params, settings)
    # The passes are traced, and their rows index these: numpy takes no traced index.
    params, rollouts, wanted = jax.tree.map(jnp.asarray, (params, rollouts, wanted))
    samples = wanted.shape[0]
    most = min(settings.max_samples or samples, samples)
    chunk = min(settings.chunk, most)
    steps = -(-most // chunk)
    if paths is None:
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
            return norms + _factored_norms(module, paths, rows, temperature, samples)

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
    module: Qwen2, paths: Paths, rows: PackedRows, temperature: float, samples: int
) -> Float[Array, " N"]:
    """The norms of all samples in the rows: a forward pass and, where the embeddings are measured, a backward one."""

    def predict(tap):
        return _before(hidden_states(module, rows.tokens, rows.positions, rows.sample, tap))

    head, inside, masked = _head(module), rows.response, module.config.masked_ids
    if not paths.embeddings:
        errors = prediction_errors(head, predict(None), rows.tokens, inside, temperature, masked, products=True)
        return _norms(module, paths, rows, errors, None, samples)
    tap = jnp.zeros((*rows.tokens.shape, module.config.hidden_size), module.dtype)
    states, backward = jax.vjp(predict, tap)
    errors = prediction_errors(head, states, rows.tokens, inside, temperature, masked, paths.head, vjp=True)
    (deltas,) = backward(errors.vjp.astype(states.dtype))
    return _norms(module, paths, rows, errors, deltas, samples)


def norms_from_taps(
    module: Qwen2,
    paths: Paths,
    rows: PackedRows,
    hidden: Float[Array, "R L D"],
    deltas: Float[Array, "R L D"],
    temperature: float,
    samples: int,
) -> Float[Array, " N"]:
    """The norms of all samples in the rows from a backward pass made for another purpose, such as the update's own.

    What is left to pay is the head's part, as in "lm_head": logits and a Gram matrix, nothing of a layer. Where only
    the embeddings are measured (of an untied model) nothing is left.

    Args:
      module: with the parameters of that pass, floats.
      paths: as `measured_paths` gives them.
      rows: of that pass.
      hidden: what `hidden_states` gave for them.
      deltas: the gradient of each sample's Σ_t log π_T(y_t) with respect to the `tap` that `hidden_states` was given.
        Of a loss Σ_i w_i · f(sample i) whose f has that gradient (an importance ratio of 1), it is the tap's gradient
        over w_i; samples with w_i = 0 cannot be measured.
      temperature: of the sampling policy.
      samples: N.
    """
    errors = None
    if paths.head:
        errors = prediction_errors(
            _head(module), _before(hidden), rows.tokens, rows.response, temperature, module.config.masked_ids,
            products=True,
        )  # fmt: skip
    return _norms(module, paths, rows, errors, deltas, samples)


class PredictionErrors(NamedTuple):
    """e_t = onehot(y_t) − softmax(U h_t / T): T times the gradient of log π_T(y_t) with respect to the logits.

    It is 0 beyond the response, and is held by its products: a row of e has the vocabulary's size.
    """

    states: Float[Array, "B T D"]  # h_t
    targets: Int[Array, "B T"]  # y_t
    missed: Float[Array, "B T"]  # e_t[y_t] = 1 − π_T(y_t)
    log_total: Float[Array, "B T"]  # log Σ_v exp(z_v / T); infinite beyond the response
    inverse: float  # 1 / T
    masked: tuple[range, ...]  # ids that have no probability
    products: Float[Array, "B T T"] | None  # e_t · e_t'
    vjp: Float[Array, "B T D"] | None  # Uᵀ e_t / T: the gradient with respect to h_t

    def at(self, head: Float[Array, "V D"], tokens: Int[Array, "B S"]) -> Float[Array, "B T S"]:
        """e_t[x_s], the errors' entries at tokens x_s."""
        probabilities = jnp.exp(
            _dot("btd,bsd->bts", self.states, head[tokens]) * self.inverse - self.log_total[..., None]
        )
        probabilities = jnp.where(in_ranges(tokens, self.masked)[:, None], 0.0, probabilities)
        return jnp.where(self.targets[..., None] == tokens[:, None], self.missed[..., None], -probabilities)


def prediction_errors(
    head: Float[Array, "V D"],
    states: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    inside: Bool[Array, "B T"],
    temperature: float,
    masked: tuple[range, ...] = (),
    products: bool = False,
    vjp: bool = False,
) -> PredictionErrors:
    """The errors of predicting `targets` from `states`, in one pass over blocks of the vocabulary.

    A block's logits are exponentiated against the largest so far, and the sums before it are rescaled (the online
    softmax, arXiv 1805.02867, algorithm 3), so no logit is computed twice. The target's own column is left out: the
    small error of a confident token is then a sum of small terms, and not a difference of large ones.

    A row costs 2·T·V·D operations for the logits, as many for the vjp, and T²·V for half of the products, the
    other half being the same; the norm of the gradient itself, block by block, would want the logits twice, so 4·T·V·D,
    which is more as long as T < 4·D. In memory are T logits for each token of a block, and the [T, T] products.

    Args:
      head: the output head, in the dtype of `states`; products are summed in float32.
      states: h_t that predicts y_t.
      targets: y_t.
      inside: which t are inside the response.
      temperature: T of the softmax.
      masked: ids that have no probability, as in `Qwen2Config`.
      products: whether to compute them.
      vjp: whether to compute it.
    """
    (rows, length, width), vocabulary = states.shape, head.shape[0]
    block = min(VOCABULARY_BLOCK, vocabulary)
    inverse = 1.0 / temperature
    parts = [slice(begin, min(begin + PRODUCT_BLOCK, length)) for begin in range(0, length, PRODUCT_BLOCK)]

    def add_block(sums, i):
        max_logit, total, squares, pulled = sums
        begin = jnp.minimum(i * block, vocabulary - block)  # the last block may overlap the one before it
        ids = begin + jnp.arange(block)
        vectors = jax.lax.dynamic_slice_in_dim(head, begin, block)
        counted = (ids >= i * block) & ~in_ranges(ids, masked) & (ids != targets[..., None])
        logits = jnp.where(counted, _dot("btd,vd->btv", states, vectors), -jnp.inf)
        new_max = jnp.maximum(max_logit, logits.max(-1))
        weights = jnp.exp((logits - new_max[..., None]) * inverse)
        decay = jnp.exp((max_logit - new_max) * inverse)
        total = total * decay + weights.sum(-1)
        weights = weights.astype(states.dtype)
        if products:
            squares = [
                known * decay[:, at, None] * decay[:, None, : at.stop]
                + _dot("btv,bsv->bts", weights[:, at], weights[:, : at.stop])
                for at, known in zip(parts, squares, strict=True)
            ]
        if vjp:
            pulled = pulled * decay[..., None] + _dot("btv,vd->btd", weights, vectors)
        return (new_max, total, squares, pulled), None

    sums = (
        jnp.full((rows, length), jnp.finfo(jnp.float32).min),
        jnp.zeros((rows, length)),
        [jnp.zeros((rows, at.stop - at.start, at.stop)) for at in parts] if products else None,
        jnp.zeros((rows, length, width)) if vjp else None,
    )
    (max_logit, total, squares, pulled), _ = jax.lax.scan(add_block, sums, jnp.arange(-(-vocabulary // block)))

    log_others = jnp.log(total) + max_logit * inverse
    own = _dot("btd,btd->bt", states, head[targets]) * inverse
    log_total = jnp.where(inside, jnp.logaddexp(log_others, own), jnp.inf)
    missed = jnp.exp(log_others - log_total)
    scale = jnp.exp(max_logit * inverse - log_total)  # turns sums into sums of probabilities
    errors = PredictionErrors(states, targets, missed, log_total, inverse, masked, None, None)
    if products:
        mixed = missed[:, None] * errors.at(head, targets)  # e_t[y_t'] · e_t'[y_t'], [B, t, t']
        same = targets[:, :, None] == targets[:, None]
        squares = jnp.concatenate([jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]))) for x in squares], 1)
        squares = jnp.where(jnp.tri(length, dtype=bool), squares, squares.swapaxes(1, 2))
        squares = squares * scale[:, :, None] * scale[:, None]
        squares += mixed + mixed.swapaxes(1, 2) - jnp.where(same, missed[:, :, None] * missed[:, None], 0.0)
        errors = errors._replace(products=squares)
    if vjp:
        pulled = missed[..., None] * head[targets] - scale[..., None] * pulled
        errors = errors._replace(vjp=pulled * inverse)
    return errors


def _norms(
    module: Qwen2,
    paths: Paths,
    rows: PackedRows,
    errors: PredictionErrors | None,
    deltas: Float[Array, "R L D"] | None,
    samples: int,
) -> Float[Array, " N"]:
    """The module's formula; `errors` are read where the head is measured, `deltas` where the embeddings are."""
    squares = jnp.zeros(rows.tokens.shape)  # by token; their sums over a sample are what is wanted
    together = rows.sample[:, :, None] == rows.sample[:, None]
    if paths.head:
        aligned = _dot("btd,bsd->bts", errors.states, errors.states)
        squares += jnp.sum(jnp.where(together, errors.products * aligned, 0.0), 2) * errors.inverse**2
    if paths.embeddings:
        deltas = deltas.astype(jnp.float32)
        squares += jnp.sum(deltas * _sums_by_token(rows.tokens, rows.sample, deltas), 2)
    if paths.head and paths.embeddings and module.lm_head is None:
        aligned = _dot("btd,bsd->bts", errors.states, deltas.astype(errors.states.dtype))
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


def _dot(subscripts: str, *operands: Array) -> Array:
    """A product in the operands' dtype, summed in float32."""
    return jnp.einsum(subscripts, *operands, preferred_element_type=jnp.float32)
