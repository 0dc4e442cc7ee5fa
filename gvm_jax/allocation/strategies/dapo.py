"""DAPO's dynamic sampling: groups that say nothing are replaced by other prompts."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.allocation.statistics import PromptEstimates
from gvm_jax.allocation.strategies.groups import totals
from gvm_jax.allocation.strategies.strategy import Constraints, Progress, Strategy, share


@dataclasses.dataclass(frozen=True)
class Dapo(Strategy):
    """Dynamic sampling of DAPO, arXiv 2503.14476: groups of `group_size` until `groups` of them have both outcomes.

    The step's prompts are the pool: the first `groups` are sampled, then as many of the next ones as groups were all
    accepted or all rejected, until enough are mixed or the budget or the pool is used up. Only mixed groups are
    trained on.
    """

    rounds: ClassVar[bool] = True
    group_size: int = 8
    groups: int = 0  # 0 = half of the step's prompts

    def counts(self, estimates: PromptEstimates, constraints: Constraints) -> Int[Array, " m"]:
        """A group for each of the first prompts."""
        none = jnp.zeros_like(constraints.maximum)
        return self.more(Progress(successes=none, trials=none, rounds=jnp.int32(0)), constraints)

    def more(self, progress: Progress, constraints: Constraints) -> Int[Array, " m"]:
        """A group for each that is missing, of prompts that were not sampled yet; whole groups only."""
        pool = constraints.maximum > 0
        wanted = self.groups or jnp.maximum(pool.sum() // 2, 1)
        mixed = (progress.successes > 0) & (progress.successes < progress.trials)
        missing = jnp.clip(wanted - mixed.sum(), 0, constraints.budget // self.group_size)
        fresh = pool & (progress.trials == 0)
        return share(jnp.where(fresh & (jnp.cumsum(fresh) <= missing), self.group_size, 0), constraints.budget)

    def kept(self, rewards: Float[Array, " N"], segments: Int[Array, " N"], num_segments: int) -> Bool[Array, " N"]:
        """The samples of groups with both outcomes."""
        successes = totals((rewards > 0).astype(jnp.int32), segments, num_segments)
        trials = totals(jnp.ones_like(segments), segments, num_segments)
        return ((successes > 0) & (successes < trials))[segments] & (segments < num_segments)
