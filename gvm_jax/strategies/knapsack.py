"""Knapsack RL: counts from the odds of a group with both outcomes."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from gvm_jax.allocation import PromptEstimates, Strategy, solver


@dataclasses.dataclass(frozen=True)
class Knapsack(Strategy):
    """Knapsack RL, arXiv 2509.25849: maximise Σ [1 - pⁿ - (1-p)ⁿ]·p(1-p)².

    The bracket is the probability of a group that is neither all accepted nor all rejected, and so has a gradient in
    GRPO; p(1-p)² is the value of that gradient. One more sample adds pⁿ(1-p) + (1-p)ⁿp to the bracket. p is the
    plain frequency of earlier visits, 1/2 for prompts without any. Prompts that were never solved are worth nothing by
    the formula and get what is left over, which `max_samples` (128 in the paper) decides.
    """

    minimum_samples: ClassVar[int] = 2

    def marginal_gain(self, estimates: PromptEstimates) -> solver.MarginalGain:
        """The gain of the value; for never solved prompts, one far below any other."""
        seen = estimates.sums
        p = jnp.where(seen.trials > 0, seen.successes / jnp.maximum(seen.trials, 1e-30), 0.5)
        leftovers = jnp.where(p == 0, 1e-30, 0.0)

        def marginal_gain(samples):
            n = samples.astype(jnp.float32)
            mixed = p**n * (1 - p) + (1 - p) ** n * p
            return jnp.maximum(p * (1 - p) ** 2 * mixed, leftovers / (n * (n + 1)))

        return marginal_gain
