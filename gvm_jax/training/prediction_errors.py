"""The gradient of a policy's log-probabilities with respect to its logits, without the logits of a whole sequence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.models.config import in_ranges

VOCABULARY_BLOCK = 2048  # tokens whose logits are held at once, of all positions of a pass
PRODUCT_BLOCK = 512  # rows of the symmetric matrix of products that are computed together, up to their diagonal


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
            dot("btd,bsd->bts", self.states, head[tokens]) * self.inverse - self.log_total[..., None]
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
        logits = jnp.where(counted, dot("btd,vd->btv", states, vectors), -jnp.inf)
        new_max = jnp.maximum(max_logit, logits.max(-1))
        weights = jnp.exp((logits - new_max[..., None]) * inverse)
        decay = jnp.exp((max_logit - new_max) * inverse)
        total = total * decay + weights.sum(-1)
        weights = weights.astype(states.dtype)
        if products:
            squares = [
                known * decay[:, at, None] * decay[:, None, : at.stop]
                + dot("btv,bsv->bts", weights[:, at], weights[:, : at.stop])
                for at, known in zip(parts, squares, strict=True)
            ]
        if vjp:
            pulled = pulled * decay[..., None] + dot("btv,vd->btd", weights, vectors)
        return (new_max, total, squares, pulled), None

    sums = (
        jnp.full((rows, length), jnp.finfo(jnp.float32).min),
        jnp.zeros((rows, length)),
        [jnp.zeros((rows, at.stop - at.start, at.stop)) for at in parts] if products else None,
        jnp.zeros((rows, length, width)) if vjp else None,
    )
    (max_logit, total, squares, pulled), _ = jax.lax.scan(add_block, sums, jnp.arange(-(-vocabulary // block)))

    log_others = jnp.log(total) + max_logit * inverse
    own = dot("btd,btd->bt", states, head[targets]) * inverse
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


def dot(subscripts: str, *operands: Array) -> Array:
    """A product in the operands' dtype, summed in float32."""
    return jnp.einsum(subscripts, *operands, preferred_element_type=jnp.float32)
