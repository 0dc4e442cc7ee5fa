"""CurES: counts from the variance of the policy gradient."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from gvm_jax.allocation import PromptEstimates, Strategy, solver


@dataclasses.dataclass(frozen=True)
class Cures(Strategy):
    """CurES, arXiv 2510.01037: n ∝ σ, the deviation of (r - p)·s, with s = ∇ log π of a sample.

        σ² = p(1-p)² E₁‖s‖² + p²(1-p) E₀‖s‖² - p²(1-p)² ‖E₁s - E₀s‖²

    E₁ and E₀ are means over accepted and rejected samples. A score has mean zero, p·E₁s + (1-p)·E₀s = 0, so the last
    term is ‖p·E₁s‖² = ‖∇p‖², the squared length of the gradient to estimate. It would take inner products between
    samples to measure; it is left out, which makes a in Σ a/n an upper bound of σ². The method's second half, prompts
    drawn in proportion to exp(√(p(1-p))/τ), is `allocation.prompt_pool`.
    """

    norms: ClassVar[str] = "all"

    def marginal_gain(self, estimates: PromptEstimates) -> solver.MarginalGain:
        p, accepted, rejected = estimates.accept_rate, estimates.gradient_norm, estimates.rejected_norm
        return solver.sample_mean(p * (1 - p) * ((1 - p) * jnp.square(accepted) + p * jnp.square(rejected)))
