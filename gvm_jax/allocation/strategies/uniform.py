"""Equal counts."""

import dataclasses

import jax.numpy as jnp

from gvm_jax.allocation import program
from gvm_jax.allocation.statistics import Beliefs
from gvm_jax.allocation.strategies.strategy import ProgramStrategy


@dataclasses.dataclass(frozen=True)
class Uniform(ProgramStrategy):
    """n_i = N/m: the program with a_i = 1. A remainder gives one sample more to the first positions of the batch."""

    def gain(self, beliefs: Beliefs) -> program.Gain:
        """Of 1/n, whatever is believed."""
        return program.inverse(jnp.ones_like(beliefs.accept_rate))
