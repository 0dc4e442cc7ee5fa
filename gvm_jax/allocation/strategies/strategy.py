"""What a strategy is: from estimates about the prompts of a batch to their numbers of samples."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.allocation import solver
from gvm_jax.allocation.statistics import PromptEstimates


@struct.dataclass
class Constraints:
    """What counts must keep to."""

    budget: Int[Array, ""]  # samples to hand out
    minimum: Int[Array, " m"]  # floor of each prompt
    maximum: Int[Array, " m"]  # cap of each prompt; 0 = padding
    costs: Float[Array, " m"] | None = None  # what a sample of each prompt costs, in tokens; None = all alike


@struct.dataclass
class Progress:
    """What the rounds of a step have brought so far."""

    successes: Int[Array, " m"]
    trials: Int[Array, " m"]
    rounds: Int[Array, ""]  # finished ones


@dataclasses.dataclass(frozen=True)
class Strategy:
    """Base of all strategies: a frozen dataclass, so hashable and static under jit; pure.

    Its fields are read from the fields of `config.allocation` of the same name. A strategy is either a variance program
    (`ProgramStrategy`, one call), or brings its own `counts`. With `rounds`, `counts` is asked for the first round and
    `more` for each further one, once the samples before it are graded.
    """

    norms: ClassVar[str] = "none"  # gradient norms to measure in the step: "none" | "accepted" | "all" samples
    least: ClassVar[int] = 1  # smallest floor of a prompt that the formula allows
    rounds: ClassVar[bool] = False
    baseline: ClassVar[str] = "drawn"  # whose rewards make a group's mean and deviation: "drawn" | "kept" samples

    def counts(self, estimates: PromptEstimates, constraints: Constraints) -> Int[Array, " m"]:
        """Samples of each prompt (in the first round); their sum is the budget, or less with `rounds`."""
        raise NotImplementedError

    def more(self, progress: Progress, constraints: Constraints) -> Int[Array, " m"]:
        """Samples of each prompt in the next round, where `constraints.budget` is what is left; all 0 = finished."""
        raise NotImplementedError

    def kept(self, rewards: Float[Array, " N"], segments: Int[Array, " N"], num_segments: int) -> Bool[Array, " N"]:
        """Which of the drawn samples are trained on. Rows with segment `num_segments` are padding."""
        return segments < num_segments


@dataclasses.dataclass(frozen=True)
class ProgramStrategy(Strategy):
    """A strategy that is a convex separable program: it declares gains, `solver.allocate` does the rest."""

    def marginal_gain(self, estimates: PromptEstimates) -> solver.MarginalGain:
        """What one more sample of each prompt is worth."""
        raise NotImplementedError

    def counts(self, estimates: PromptEstimates, constraints: Constraints) -> Int[Array, " m"]:
        """The exact optimum within the constraints."""
        c = constraints
        return solver.allocate(self.marginal_gain(estimates), c.budget, c.minimum, c.maximum, c.costs)


def share(wanted: Int[Array, " m"], budget: Int[Array, ""]) -> Int[Array, " m"]:
    """`wanted` where the budget allows, else as level as it does, the earliest prompts first."""
    level = solver.inverse((wanted > 0).astype(jnp.float32))
    return solver.allocate(level, jnp.minimum(budget, wanted.sum()), 0, wanted)
