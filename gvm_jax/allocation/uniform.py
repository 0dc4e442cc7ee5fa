"""Equal counts."""

import dataclasses

import jax.numpy as jnp

from gvm_jax.allocation import solver
from gvm_jax.allocation.statistics import PromptEstimates
from gvm_jax.allocation.strategy import Strategy


@dataclasses.dataclass(frozen=True)
class Uniform(Strategy):
    """n_i = N/m, which minimises Σ 1/n. A remainder gives one sample more to the first positions of the batch."""

    def marginal_gain(self, estimates: PromptEstimates) -> solver.MarginalGain:
        return solver.sample_mean(jnp.ones_like(estimates.accept_rate))
