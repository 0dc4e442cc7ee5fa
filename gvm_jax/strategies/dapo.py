"""DAPO's dynamic sampling: other prompts replace groups that have no gradient."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.allocation import Constraints, Progress, PromptEstimates, Strategy, option
from gvm_jax.config import integer
from gvm_jax.strategies.groups import is_mixed, share, tally


@dataclasses.dataclass(frozen=True)
class Dapo(Strategy):
    """Dynamic sampling of DAPO, arXiv 2503.14476: groups of `group_size` until `groups` of them have both outcomes.

    The step's prompts are the pool: the first `groups` are sampled, then as many of the next ones as groups were all
    accepted or all rejected, until enough are mixed or the budget or the pool is used up. Only mixed groups are
    trained on.
    """

    rounds: ClassVar[bool] = True
    group_size: int = option(8, integer(at_least=2))
    groups: int = option(0, integer(at_least=0))  # 0 = half of the step's prompts

    def counts(self, estimates: PromptEstimates, constraints: Constraints) -> Int[Array, " m"]:
        none = jnp.zeros_like(constraints.maximum)
        return self.more(Progress(successes=none, trials=none, rounds=jnp.int32(0)), constraints)

    def more(self, progress: Progress, constraints: Constraints) -> Int[Array, " m"]:
        """A group for each that is missing, of prompts that were not sampled yet; whole groups only."""
        wanted = self.groups or max(progress.trials.size // 2, 1)
        missing = jnp.clip(wanted - is_mixed(progress).sum(), 0, constraints.budget // self.group_size)
        fresh = progress.trials == 0
        return share(jnp.where(fresh & (jnp.cumsum(fresh) <= missing), self.group_size, 0), constraints.budget)

    def kept(self, rewards: Float[Array, " N"], segments: Int[Array, " N"], num_segments: int) -> Bool[Array, " N"]:
        return is_mixed(tally(rewards, segments, num_segments))[segments] & (segments < num_segments)
