"""CERO: counts from a saturating utility of the expected reward variance."""

import dataclasses

import jax.numpy as jnp

from gvm_jax.allocation import solver
from gvm_jax.allocation.statistics import PromptEstimates
from gvm_jax.allocation.strategies.strategy import ProgramStrategy


@dataclasses.dataclass(frozen=True)
class Cero(ProgramStrategy):
    """CERO, arXiv 2606.05606: maximise Σ 1 - exp(-4·λ·q·n/R), with q = ab/((a+b)(a+b+1)) = E[p(1-p)] under Beta(a, b).

    R is the size of a group, and λ how fast the utility saturates. The authors find the price of a
    sample by dual descent over the steps of a run, so that its budget holds on average; here a step's budget is fixed
    and the price that meets it is found exactly.
    """

    saturation: float = 1.0  # λ
    group_size: int = 8  # R

    def marginal_gain(self, estimates: PromptEstimates) -> solver.MarginalGain:
        """Of minus the utility: exp(-κn)·(1 - exp(-κ)), with κ = 4λq/R."""
        a, b = estimates.successes, estimates.failures
        rate = 4 * self.saturation * a * b / ((a + b) * (a + b + 1)) / self.group_size

        return lambda samples: jnp.exp(-rate * samples) * -jnp.expm1(-rate)
