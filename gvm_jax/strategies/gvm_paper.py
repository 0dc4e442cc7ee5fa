"""The reference implementation's allocation, to the bit."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gvm_jax.allocation import Constraints, PromptEstimates, Strategy, option
from gvm_jax.config import number


@dataclasses.dataclass(frozen=True)
class GvmPaper(Strategy):
    """GVM as its authors' code has it: github.com/RLHFlow/GVM at d640a75, em/stage_2_calc_sample_size.py.

    Plain frequencies p = accepted/drawn and mean norms G, no prior; weights w = G/√(p + α/p^(β-1)), 0 where G or p is
    0; two filters; n = round(N·w/Σw), half to even, and ±1 where the rounding was furthest off until Σ n = N. All in
    float64, sums in order. With statistics of pilots alone (`mode = "pilot"`, `decay = 0`) these are its counts.

    Neither floor nor cap applies: prompts without an accepted sample get none and are not trained on. Where every
    weight is 0 the authors' code divides by zero; here counts are equal then. Of equal rounding errors the first
    prompt's is corrected first, where NumPy leaves the order open.
    """

    norms: ClassVar[str] = "accepted"
    minimum_samples: ClassVar[int] = 0
    alpha: float = option(1e-3, number(at_least=0))
    beta: float = option(2.0, number(above=0))
    filter_threshold: float = option(0.0, number(at_least=0, at_most=1))  # drop prompts with p above it; 0 = off
    filter_insufficient: float = option(0.0, number(at_least=0))  # drop prompts with a smaller p·n; 0 = off

    def counts(self, estimates: PromptEstimates, constraints: Constraints) -> Int[Array, " m"]:
        """Integers with sum `constraints.budget`."""
        seen = estimates.sums
        with jax.enable_x64(True):  # for this function alone; TPUs emulate float64
            budget = jnp.asarray(constraints.budget, jnp.int64)
            drawn, measured = seen.trials.astype(jnp.float64), seen.norm_count.astype(jnp.float64)
            p = jnp.where(drawn > 0, seen.successes.astype(jnp.float64) / jnp.where(drawn > 0, drawn, 1), 0)
            norm = jnp.where(measured > 0, seen.norm_sum.astype(jnp.float64) / jnp.where(measured > 0, measured, 1), 0)
            return _round(self._shares(norm, p, budget), budget).astype(jnp.int32)

    def _shares(self, norm: Float[Array, " m"], p: Float[Array, " m"], budget: Int[Array, ""]) -> Float[Array, " m"]:
        positive = (norm > 0) & (p > 0)
        rate = jnp.where(positive, p, 1)
        damped = jnp.sqrt(rate + self.alpha / jnp.power(rate, self.beta - 1.0))
        shares = _normalise(jnp.where(positive, norm / damped, 0))
        if self.filter_threshold > 0:
            shares = jnp.where(p <= self.filter_threshold, shares, 0)
        if self.filter_insufficient > 0:
            shares = jnp.where(p * shares * budget >= self.filter_insufficient, shares, 0)
        return _normalise(shares)


def _round(shares: Float[Array, " m"], budget: Int[Array, ""]) -> Int[Array, " m"]:
    scaled = shares * budget
    counts = jnp.round(scaled).astype(jnp.int64)
    error = budget - counts.sum()
    residuals = scaled - counts
    order = jnp.argsort(jnp.where(error > 0, -residuals, residuals), stable=True)
    rank = jnp.argsort(order, stable=True)
    return counts + jnp.sign(error) * (rank < jnp.abs(error))


def _normalise(weights: Float[Array, " m"]) -> Float[Array, " m"]:
    """Weights over their sum; equal ones where all are 0."""
    # In order, as Python's sum() does: another order rounds differently, which decides ties.
    total, _ = jax.lax.scan(lambda total, weight: (total + weight, None), jnp.zeros((), weights.dtype), weights)
    return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), 1 / weights.size)
