"""Samples side by side in rows of equal length, so that passes over real lengths compute little padding.

A step's rollouts have a row each, as long as the longest prompt and response that a config allows; on real data most
of it is padding. Here whole samples are put into rows of that length or a multiple, best fit first by decreasing length
(Johnson, 1974, "Fast algorithms for bin packing": about 11/9 of the least number of rows at most), on the device and
with static shapes: there are rows for the longest samples, the empty ones come last, and passes over them are skipped.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.rollout.rollouts import Rollouts


def pack(lengths: Int[Array, " n"], samples: Int[Array, " n"], rows: int, row_length: int) -> Int[Array, "rows L"]:
    """Where in rows of `row_length` tokens the samples begin.

    Args:
      lengths: tokens of each sample, at most `row_length`; 0 for those that are left out.
      samples: their numbers.
      rows: static. Where k samples of the greatest length fit into a row, n/k rows always do: one that a sample no
        longer fits into holds k already.
      row_length: static.

    Returns:
      The number of the sample that begins at a place, -1 where none does. Rows without samples come last.
    """

    def place(free: Int[Array, " rows"], sample):
        length, number = sample
        # The row that it fills best; of equal ones, empty ones too, the first.
        row = jnp.argmin(jnp.where(free >= length, free, row_length + 1))
        begin = row_length - free[row]
        taken = length > 0
        return free.at[row].add(-length), (jnp.where(taken, row, rows), begin, number)

    order = jnp.argsort(-lengths, stable=True)
    _, (row, begin, number) = jax.lax.scan(place, jnp.full(rows, row_length), (lengths[order], samples[order]))
    return jnp.full((rows, row_length), -1).at[row, begin].set(number, mode="drop")


@struct.dataclass
class PackedRows:
    """Rows of L tokens that hold samples side by side, prompt and response each; padding behind the last."""

    tokens: Int[Array, "R L"]
    positions: Int[Array, "R L"]  # of the token in its sample
    sample: Int[Array, "R L"]  # number of the token's sample in the N rollouts; N for padding
    response: Bool[Array, "R L"]  # the token is of a response
    logprobs: Float[Array, "R L"]  # of the response tokens under the sampling policy; 0 elsewhere

    @classmethod
    def fill(cls, begins: Int[Array, "R L"], rollouts: Rollouts) -> "PackedRows":
        """The rows that `pack` laid out."""
        places = jnp.broadcast_to(jnp.arange(begins.shape[1]), begins.shape)
        begin = jax.lax.cummax(jnp.where(begins >= 0, places, -1), axis=1)
        sample = jnp.take_along_axis(begins, jnp.maximum(begin, 0), axis=1)
        position, prompt_length = places - begin, rollouts.prompt_lengths[sample]
        inside = (begin >= 0) & (position < prompt_length + rollouts.response_lengths[sample])
        response = inside & (position >= prompt_length)
        offset = jnp.where(response, position - prompt_length, 0)
        position = jnp.where(inside, position, 0)
        return cls(
            tokens=jnp.where(inside, rollouts.tokens[sample, position], 0),
            positions=position,
            sample=jnp.where(inside, sample, rollouts.group.shape[0]),
            response=response,
            logprobs=jnp.where(response, rollouts.logprobs[sample, offset], 0.0),
        )
