"""SPEED-RL: screen prompts by a few samples, go on with those of intermediate difficulty."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.allocation import Constraints, Progress, PromptEstimates, Strategy, option
from gvm_jax.config import integer
from gvm_jax.strategies.groups import is_mixed, share, tally


@dataclasses.dataclass(frozen=True)
class SpeedRl(Strategy):
    """SPEED-RL, arXiv 2506.09016: `screen_samples` of every prompt; where both outcomes are seen, `group_size` more.

    Where the budget is too small for all of these, the earliest prompts come first. Samples of screening and
    continuation are trained on together, prompts that were not continued are not.
    """

    rounds: ClassVar[bool] = True
    screen_samples: int = option(4, integer(at_least=2))
    group_size: int = option(8, integer(at_least=2))  # 20 in the paper

    def counts(self, estimates: PromptEstimates, constraints: Constraints) -> Int[Array, " m"]:
        """The screening."""
        return share(jnp.minimum(self.screen_samples, constraints.maximum), constraints.budget)

    def more(self, progress: Progress, constraints: Constraints) -> Int[Array, " m"]:
        """The continuation, in whole groups; nothing after it."""
        mixed = is_mixed(progress) & (progress.rounds == 1)
        first = mixed & (jnp.cumsum(mixed) <= constraints.budget // self.group_size)
        left = jnp.maximum(constraints.maximum - progress.trials, 0)
        return share(jnp.where(first, jnp.minimum(self.group_size, left), 0), constraints.budget)

    def kept(self, rewards: Float[Array, " N"], segments: Int[Array, " N"], num_segments: int) -> Bool[Array, " N"]:
        continued = tally(rewards, segments, num_segments).trials > self.screen_samples
        return continued[segments] & (segments < num_segments)
