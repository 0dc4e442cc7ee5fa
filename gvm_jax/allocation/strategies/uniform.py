"""Equal counts."""

import dataclasses

import jax.numpy as jnp

from gvm_jax.allocation import solver
from gvm_jax.allocation.statistics import PromptEstimates
from gvm_jax.allocation.strategies.strategy import ProgramStrategy


@dataclasses.dataclass(frozen=True)
class Uniform(ProgramStrategy):
    """n_i = N/m: the program with a_i = 1. A remainder gives one sample more to the first positions of the batch."""

    def marginal_gain(self, estimates: PromptEstimates) -> solver.MarginalGain:
        """Of 1/n, whatever is estimates."""
        return solver.inverse(jnp.ones_like(estimates.accept_rate))
