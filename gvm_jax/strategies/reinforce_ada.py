"""Reinforce-Ada: more samples for hard prompts, by estimate or until enough are accepted."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.allocation import Constraints, Progress, PromptEstimates, Strategy, option, solver
from gvm_jax.allocation.groups import rank_within
from gvm_jax.config import integer
from gvm_jax.strategies.groups import share, tally


@dataclasses.dataclass(frozen=True)
class ReinforceAdaEst(Strategy):
    """Reinforce-Ada-Est, arXiv 2510.04996: n ∝ 1/√p, with p from a decayed Beta posterior."""

    def marginal_gain(self, estimates: PromptEstimates) -> solver.MarginalGain:
        return solver.sample_mean(1 / estimates.accept_rate)


@dataclasses.dataclass(frozen=True)
class ReinforceAdaSeq(Strategy):
    """Reinforce-Ada-Seq, arXiv 2510.04996: rounds of samples until a prompt has enough of each outcome.

    A prompt leaves once `accepted_wanted` and `rejected_wanted` samples are in, or after `max_rounds`. `group_size` of
    its samples are trained on, half of them accepted where there are enough; the group's baseline is over all samples.
    Stopping at successes makes accepted/drawn too high on average: statistics of such runs over-estimate p.
    """

    rounds: ClassVar[bool] = True
    round_size: int = option(4, integer(at_least=1))
    max_rounds: int = option(4, integer(at_least=1))
    accepted_wanted: int = option(2, integer(at_least=1))
    rejected_wanted: int = option(2, integer(at_least=0))
    group_size: int = option(8, integer(at_least=2))

    def counts(self, estimates: PromptEstimates, constraints: Constraints) -> Int[Array, " m"]:
        """`round_size` each."""
        return share(jnp.minimum(self.round_size, constraints.maximum), constraints.budget)

    def more(self, progress: Progress, constraints: Constraints) -> Int[Array, " m"]:
        """`round_size` for prompts that go on."""
        rejected = progress.trials - progress.successes
        enough = (progress.successes >= self.accepted_wanted) & (rejected >= self.rejected_wanted)
        goes_on = ~enough & (progress.trials > 0) & (progress.rounds < self.max_rounds)
        left = jnp.clip(constraints.maximum - progress.trials, 0, self.round_size)
        return share(jnp.where(goes_on, left, 0), constraints.budget)

    def kept(self, rewards: Float[Array, " N"], segments: Int[Array, " N"], num_segments: int) -> Bool[Array, " N"]:
        """Of each prompt the earliest, half of them accepted; more of one outcome where the other is short."""
        drawn, accepted, size = tally(rewards, segments, num_segments), rewards > 0, self.group_size
        rejected = drawn.trials - drawn.successes
        take = jnp.clip(size - jnp.minimum(rejected, size - size // 2), 0, drawn.successes)
        quota = jnp.where(accepted, take[segments], (size - take)[segments])
        return (rank_within(2 * segments + accepted) < quota) & (segments < num_segments)
