"""PODS: sample many, train on the few that differ most."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.allocation import Uniform, option
from gvm_jax.allocation.groups import rank_within
from gvm_jax.config import integer
from gvm_jax.strategies.groups import tally


@dataclasses.dataclass(frozen=True)
class Pods(Uniform):
    """PODS, arXiv 2504.13818: equal counts, of which the `group_size` with the largest reward variance are trained on.

    Such a subset consists of the k highest and the `group_size` - k lowest rewards for some k (the paper's Theorem 1),
    so all k are tried. The group's mean and deviation are those of the subset.
    """

    baseline: ClassVar[str] = "kept"
    group_size: int = option(8, integer(at_least=2))

    def kept(self, rewards: Float[Array, " N"], segments: Int[Array, " N"], num_segments: int) -> Bool[Array, " N"]:
        """The subset of each prompt; all of its samples where there are no more than `group_size`."""
        ranked = rewards[jnp.lexsort((rewards, segments))]  # by segment, the lowest reward first
        sizes = tally(rewards, segments, num_segments).trials
        first = jnp.cumsum(sizes) - sizes
        size = jnp.minimum(self.group_size, sizes)
        # Prefix sums in order: those over a segment's lowest and highest rewards are differences of two.
        sums, squares = (jnp.concatenate([jnp.zeros(1), jnp.cumsum(x)]) for x in (ranked, ranked**2))

        def variance(high):
            high = jnp.minimum(high, size)
            low_end, high_begin, end = first + size - high, first + sizes - high, first + sizes

            def total(prefix):
                return prefix[low_end] - prefix[first] + prefix[end] - prefix[high_begin]

            n = jnp.maximum(size, 1)
            return total(squares) / n - (total(sums) / n) ** 2

        best = jnp.argmax(jnp.stack([variance(high) for high in range(self.group_size + 1)]), axis=0)
        high = jnp.minimum(best, size)
        rank = rank_within(segments, rewards)
        chosen = (rank < (size - high)[segments]) | (rank >= (sizes - high)[segments])
        return chosen & (segments < num_segments)
