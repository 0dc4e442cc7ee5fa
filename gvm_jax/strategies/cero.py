"""CERO: counts from a saturating utility of the expected reward variance."""

import dataclasses

import jax.numpy as jnp

from gvm_jax.allocation import PromptEstimates, Strategy, option, solver
from gvm_jax.config import integer, number


@dataclasses.dataclass(frozen=True)
class Cero(Strategy):
    """CERO, arXiv 2606.05606: maximise Σ 1 - exp(-4·λ·q·n/R), with q = ab/((a+b)(a+b+1)) = E[p(1-p)] under Beta(a, b).

    The authors find the price of a sample by dual descent over the steps of a run, so that its budget holds on average;
    here a step's budget is fixed and the price that meets it is found exactly.
    """

    saturation: float = option(1.0, number(above=0))  # λ, how fast the utility saturates
    group_size: int = option(8, integer(at_least=2))  # R

    def marginal_gain(self, estimates: PromptEstimates) -> solver.MarginalGain:
        """exp(-κn)·(1 - exp(-κ)), with κ = 4λq/R."""
        a, b = estimates.successes, estimates.failures
        rate = 4 * self.saturation * a * b / ((a + b) * (a + b + 1)) / self.group_size
        return lambda samples: jnp.exp(-rate * samples) * -jnp.expm1(-rate)
