"""Gradient variance minimisation."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gvm_jax.allocation import solver
from gvm_jax.allocation.statistics import PromptEstimates
from gvm_jax.allocation.strategies.strategy import ProgramStrategy


@dataclasses.dataclass(frozen=True)
class Gvm(ProgramStrategy):
    """GVM, arXiv 2505.02391, with posterior estimates, bounds and exact integers.

    Rejection sampling with n draws at accept rate p has a gradient variance of at most G²/(p·n) (Lemma 1).
    Eq. 7 multiplies it by 1/(1 + α/p^β), which takes samples from prompts that are hardly ever solved:

        minimise Σ a/n,   a = G² / (p + α / p^(β-1)),   the square of Proposition 1's weight.

    α = 0 is the plain bound.
    """

    norms: ClassVar[str] = "accepted"
    alpha: float = 1e-3
    beta: float = 2.0

    def marginal_gain(self, estimates: PromptEstimates) -> solver.MarginalGain:
        """Of a/n."""
        return solver.inverse(self.coefficients(estimates.accept_rate, estimates.gradient_norm))

    def coefficients(self, accept_rate: Float[Array, " m"], gradient_norm: Float[Array, " m"]) -> Float[Array, " m"]:
        """a; p = 0 gives its limit, which is 0 for β > 1 unless α is 0."""
        p = jnp.maximum(accept_rate, np.finfo(np.float32).tiny)
        damping = self.alpha * p ** (1 - self.beta) if self.alpha else 0.0
        return gradient_norm**2 / (p + damping)


@dataclasses.dataclass(frozen=True)
class GvmRates(Gvm):
    """GVM with G = 1 for all prompts: what the accept rates alone are worth. No gradient norm is measured."""

    norms: ClassVar[str] = "none"

    def marginal_gain(self, estimates: PromptEstimates) -> solver.MarginalGain:
        """Of a/n."""
        return solver.inverse(self.coefficients(estimates.accept_rate, jnp.ones_like(estimates.accept_rate)))
