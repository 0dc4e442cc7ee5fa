"""From prompt statistics to the next counts: the one call that a training step makes."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.allocation import program, statistics
from gvm_jax.allocation.statistics import PromptStatistics
from gvm_jax.allocation.strategies import Gvm, Strategy, make_strategy


@struct.dataclass
class AllocationInfo:
    """What the counts were computed from, and what they are expected to be worth."""

    accept_rate: Float[Array, " m"]  # posterior mean of p
    gradient_norm: Float[Array, " m"]  # shrunk root mean squared norm G
    coefficients: Float[Array, " m"]  # the strategy's a
    variance_ratio: Float[Array, ""]  # bound Σ G²/(p·n) at equal counts over the bound at the chosen ones
    ideal_variance_ratio: Float[Array, ""]  # the best such ratio without bounds or rounding, 1 + CV²(G/√p)


@dataclasses.dataclass(frozen=True)
class Allocator:
    """The settings of an allocation; hashable, so it may be a static argument of a jitted function.

    Fields are named as in `config.allocation`, where each is explained.
    """

    strategy: Strategy
    min_samples: int
    max_samples: int  # 0 = no cap
    accept_rate_prior: float
    gradient_norm_prior: float
    decay: float  # for `update`

    @classmethod
    def from_config(cls, config: Any) -> "Allocator":
        """The allocator of the section `config.allocation`; ValueError if its strategy is unknown."""
        return cls(
            strategy=make_strategy(config),
            min_samples=config.min_samples,
            max_samples=config.max_samples,
            accept_rate_prior=config.accept_rate_prior,
            gradient_norm_prior=config.gradient_norm_prior,
            decay=config.decay,
        )

    def check_budget(self, num_prompts: int, budget: int) -> None:
        """Raises ValueError, on the host, if the bounds do not let `num_prompts` share `budget` samples."""
        program.check_bounds(num_prompts, budget, self.min_samples, self.max_samples or max(budget, self.min_samples))

    def next_counts(
        self,
        prompt_statistics: PromptStatistics,
        prompt_ids: Int[Array, " m"],
        valid: Bool[Array, " m"],
        budget: ArrayLike,
    ) -> tuple[Int[Array, " m"], AllocationInfo]:
        """Counts for the prompts of a batch, and what they rest on. Pure; runs inside the jitted step.

        The two variance ratios measure every strategy by the same bound, Lemma 1 of arXiv 2505.02391, so a
        run with equal counts also reports what an allocation could gain.

        Args:
            prompt_statistics: the statistics of all prompts.
            prompt_ids: ids of the batch's prompts.
            valid: False for padding, which gets no samples.
            budget: samples to hand out, an int or a traced int32 scalar.

        Returns:
            n_i, int32, with sum `budget` if `check_budget` passes for the number of valid prompts; the info.
        """
        accept_rate = statistics.accept_rate(prompt_statistics, prompt_ids, self.accept_rate_prior)
        gradient_norm = statistics.gradient_norm(prompt_statistics, prompt_ids, self.gradient_norm_prior)
        coefficients = self.strategy.coefficients(accept_rate, gradient_norm)
        maximum = jnp.where(valid, self.max_samples or budget, 0)
        counts = program.allocate(coefficients, budget, self.min_samples, maximum)
        bound = Gvm(alpha=0.0).coefficients(accept_rate, gradient_norm)
        return counts, AllocationInfo(
            accept_rate=accept_rate,
            gradient_norm=gradient_norm,
            coefficients=coefficients,
            variance_ratio=program.variance_ratio(bound, counts, valid),
            ideal_variance_ratio=program.ideal_variance_ratio(bound, valid),
        )
