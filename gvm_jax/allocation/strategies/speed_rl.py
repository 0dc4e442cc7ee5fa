"""SPEED-RL: screen prompts by a few samples, go on with those of intermediate difficulty."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.allocation.statistics import PromptEstimates
from gvm_jax.allocation.strategies.groups import totals
from gvm_jax.allocation.strategies.strategy import Constraints, Progress, Strategy, share


@dataclasses.dataclass(frozen=True)
class SpeedRl(Strategy):
    """SPEED-RL, arXiv 2506.09016: `screen_samples` of every prompt; where both outcomes are seen, `group_size` more.

    Where the budget is too small for all of these, the earliest prompts come first. Samples of screening and
    continuation are trained on together, prompts that were not continued are not.
    """

    rounds: ClassVar[bool] = True
    screen_samples: int = 4
    group_size: int = 8  # 20 in the paper

    def counts(self, estimates: PromptEstimates, constraints: Constraints) -> Int[Array, " m"]:
        """The screening."""
        return share(jnp.minimum(self.screen_samples, constraints.maximum), constraints.budget)

    def more(self, progress: Progress, constraints: Constraints) -> Int[Array, " m"]:
        """The continuation, in whole groups; nothing after it."""
        mixed = (progress.successes > 0) & (progress.successes < progress.trials) & (progress.rounds == 1)
        first = mixed & (jnp.cumsum(mixed) <= constraints.budget // self.group_size)
        left = jnp.maximum(constraints.maximum - progress.trials, 0)
        return share(jnp.where(first, jnp.minimum(self.group_size, left), 0), constraints.budget)

    def kept(self, rewards: Float[Array, " N"], segments: Int[Array, " N"], num_segments: int) -> Bool[Array, " N"]:
        """The samples of prompts that were continued."""
        trials = totals(jnp.ones_like(segments), segments, num_segments)
        return (trials > self.screen_samples)[segments] & (segments < num_segments)
