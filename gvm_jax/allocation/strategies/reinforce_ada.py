"""Reinforce-Ada: more samples for hard prompts, by estimate or until enough are accepted."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.allocation import solver
from gvm_jax.allocation.statistics import PromptEstimates
from gvm_jax.allocation.strategies.groups import balanced
from gvm_jax.allocation.strategies.strategy import Constraints, ProgramStrategy, Progress, Strategy, share


@dataclasses.dataclass(frozen=True)
class ReinforceAdaEst(ProgramStrategy):
    """Reinforce-Ada-Est, arXiv 2510.04996: n ∝ 1/√p, with p from a decayed Beta posterior."""

    def marginal_gain(self, estimates: PromptEstimates) -> solver.MarginalGain:
        """Of a/n with a = 1/p."""
        return solver.inverse(1 / estimates.accept_rate)


@dataclasses.dataclass(frozen=True)
class ReinforceAdaSeq(Strategy):
    """Reinforce-Ada-Seq, arXiv 2510.04996: rounds of samples until a prompt has enough of each outcome.

    A prompt leaves once `accepted_wanted` and `rejected_wanted` samples are in, or after `max_rounds`. `group_size` of
    its samples are trained on, half of them accepted where there are enough; the group's baseline is over all samples.
    Stopping at successes makes accepted/drawn too high on average: statistics of such runs over-estimate p.
    """

    rounds: ClassVar[bool] = True
    round_size: int = 4
    max_rounds: int = 4
    accepted_wanted: int = 2
    rejected_wanted: int = 2
    group_size: int = 8

    def counts(self, estimates: PromptEstimates, constraints: Constraints) -> Int[Array, " m"]:
        """`round_size` each."""
        return share(jnp.minimum(self.round_size, constraints.maximum), constraints.budget)

    def more(self, progress: Progress, constraints: Constraints) -> Int[Array, " m"]:
        """`round_size` for those that go on."""
        rejected = progress.trials - progress.successes
        enough = (progress.successes >= self.accepted_wanted) & (rejected >= self.rejected_wanted)
        goes_on = ~enough & (progress.trials > 0) & (progress.rounds < self.max_rounds)
        left = jnp.clip(constraints.maximum - progress.trials, 0, self.round_size)
        return share(jnp.where(goes_on, left, 0), constraints.budget)

    def kept(self, rewards: Float[Array, " N"], segments: Int[Array, " N"], num_segments: int) -> Bool[Array, " N"]:
        """Half accepted and half rejected samples of each prompt, more of one where the other has too few."""
        return balanced(rewards > 0, segments, num_segments, self.group_size)
