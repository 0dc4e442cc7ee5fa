"""Gradient variance minimisation."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gvm_jax.allocation import solver
from gvm_jax.allocation.options import option
from gvm_jax.allocation.statistics import PromptEstimates
from gvm_jax.allocation.strategy import Strategy
from gvm_jax.config import number


@dataclasses.dataclass(frozen=True)
class Gvm(Strategy):
    """GVM, arXiv 2505.02391, with posterior estimates, bounds and exact integers.

    Rejection sampling with n draws at accept rate p has a gradient variance of at most G²/(p·n) (Lemma 1).
    Eq. 7 multiplies it by 1/(1 + α/p^β), which takes samples from prompts that are hardly ever solved:

        minimise Σ a/n,   a = G² / (p + α / p^(β-1)),   the square of Proposition 1's weight.

    α = 0 is the plain bound.
    """

    norms: ClassVar[str] = "accepted"
    alpha: float = option(1e-3, number(at_least=0))
    beta: float = option(2.0, number(above=0))

    def marginal_gain(self, estimates: PromptEstimates) -> solver.MarginalGain:
        return solver.sample_mean(self.coefficients(estimates.accept_rate, estimates.gradient_norm))

    def coefficients(self, accept_rate: Float[Array, " m"], gradient_norm: Float[Array, " m"]) -> Float[Array, " m"]:
        """a; p = 0 gives its limit, which is 0 for β > 1 unless α is 0."""
        p = jnp.maximum(accept_rate, np.finfo(np.float32).tiny)
        damping = self.alpha * p ** (1 - self.beta) if self.alpha else 0.0
        return gradient_norm**2 / (p + damping)


@dataclasses.dataclass(frozen=True)
class GvmRates(Gvm):
    """GVM with G = 1 for all prompts, so by accept rates alone. No gradient norm is measured."""

    norms: ClassVar[str] = "none"

    def marginal_gain(self, estimates: PromptEstimates) -> solver.MarginalGain:
        return solver.sample_mean(self.coefficients(estimates.accept_rate, jnp.ones_like(estimates.accept_rate)))
