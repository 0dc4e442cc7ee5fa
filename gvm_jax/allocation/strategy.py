"""The contract of a strategy: from estimates of a batch's prompts to their numbers of samples."""

import dataclasses
from typing import ClassVar

from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.allocation import solver
from gvm_jax.allocation.options import check_options
from gvm_jax.allocation.statistics import PromptEstimates


@struct.dataclass
class Constraints:
    """The bounds of a step's counts."""

    budget: Int[Array, ""]  # samples to hand out
    minimum: Int[Array, " m"]  # floor of each prompt
    maximum: Int[Array, " m"]  # cap of each prompt
    costs: Float[Array, " m"] | None = None  # tokens that a sample of each prompt costs; None = all alike


@struct.dataclass
class Progress:
    """The samples of a step's finished rounds."""

    successes: Int[Array, " m"]
    trials: Int[Array, " m"]
    rounds: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Strategy:
    """Base of all strategies: a frozen dataclass of options, so hashable and static under jit. Its methods are pure.

    Counts minimise a sum of convex terms f_i(n_i): most strategies define `marginal_gain` alone. One with another rule
    overrides `counts`. A strategy with `rounds` is asked for `counts` first and, once these samples are graded, for
    `more` until that is 0 for all prompts.
    """

    norms: ClassVar[str] = "none"  # samples whose gradient norm is measured in the step: "none" | "accepted" | "all"
    minimum_samples: ClassVar[int] = 1  # smallest floor of a prompt that the formula allows
    rounds: ClassVar[bool] = False
    baseline: ClassVar[str] = "drawn"  # samples whose rewards give a group's mean and deviation: "drawn" | "kept"

    def __post_init__(self):
        check_options(self)

    def marginal_gain(self, estimates: PromptEstimates) -> solver.MarginalGain:
        """f_i(n) - f_i(n+1), the worth of one more sample of each prompt."""
        raise NotImplementedError

    def counts(self, estimates: PromptEstimates, constraints: Constraints) -> Int[Array, " m"]:
        """Samples of each prompt (in the first round), int32; their sum is the budget, or less with `rounds`."""
        c = constraints
        return solver.allocate(self.marginal_gain(estimates), c.budget, c.minimum, c.maximum, c.costs)

    def more(self, progress: Progress, constraints: Constraints) -> Int[Array, " m"]:
        """Samples of each prompt in the next round, where `constraints.budget` is what is left; all 0 = finished."""
        raise NotImplementedError

    def kept(self, rewards: Float[Array, " N"], segments: Int[Array, " N"], num_segments: int) -> Bool[Array, " N"]:
        """The drawn samples that are trained on.

        Args:
            rewards: of each sample; positive = accepted.
            segments: the group that each sample belongs to; `num_segments` marks rows without a sample.
            num_segments: static.
        """
        return segments < num_segments
