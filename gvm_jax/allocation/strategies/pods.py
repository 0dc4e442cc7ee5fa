"""PODS: sample many, train on the few that differ most."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gvm_jax.allocation.strategies.groups import totals
from gvm_jax.allocation.strategies.uniform import Uniform


@dataclasses.dataclass(frozen=True)
class Pods(Uniform):
    """PODS, arXiv 2504.13818: equal counts, of which the `group_size` with the largest reward variance are trained on.

    Such a subset consists of the k highest and the `group_size` - k lowest rewards for some k (the paper's Theorem 1),
    so all k are tried. The group's mean and deviation are those of the subset.
    """

    baseline: ClassVar[str] = "kept"
    group_size: int = 8

    def kept(self, rewards: Float[Array, " N"], segments, num_segments: int) -> Bool[Array, " N"]:
        """The subset of each prompt; all of its samples where there are no more than `group_size`."""
        order = jnp.lexsort((rewards, segments))  # by segment, the lowest reward first
        values, of = rewards[order], segments[order]
        sizes = totals(jnp.ones_like(segments), segments, num_segments)
        first = jnp.cumsum(sizes) - sizes
        size = jnp.minimum(self.group_size, sizes)
        # Prefix sums in order: those over a segment's lowest and highest rewards are differences of two.
        sums, squares = (jnp.concatenate([jnp.zeros(1), jnp.cumsum(x)]) for x in (values, values**2))

        def variance(high):
            high = jnp.minimum(high, size)
            low_end, high_begin, end = first + size - high, first + sizes - high, first + sizes

            def total(prefix):
                return prefix[low_end] - prefix[first] + prefix[end] - prefix[high_begin]

            n = jnp.maximum(size, 1)
            return total(squares) / n - (total(sums) / n) ** 2

        best = jnp.argmax(jnp.stack([variance(high) for high in range(self.group_size + 1)]), axis=0)
        high = jnp.minimum(best, size)
        place = jnp.arange(len(rewards)) - first[of]
        chosen = (place < (size - high)[of]) | (place >= (sizes - high)[of])
        return jnp.zeros_like(chosen).at[order].set(chosen) & (segments < num_segments)
