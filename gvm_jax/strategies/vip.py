"""VIP: counts from the variance of the reward."""

import dataclasses
from typing import ClassVar

from gvm_jax.allocation import PromptEstimates, Strategy, option, solver
from gvm_jax.config import choice


@dataclasses.dataclass(frozen=True)
class Vip(Strategy):
    """VIP, arXiv 2602.01601, for group baselines: a = 4·p(1-p), the variance of a reward in {-1, 1}.

    The variance of a prompt's gradient is a·(n-1)/n² where a sample is in its own baseline (Dr. GRPO), and a/(n-1) with
    the mean of the others (RLOO). p is the posterior mean of the prompt's own samples; the authors predict it by a
    Gaussian process on embeddings of the prompts.
    """

    minimum_samples: ClassVar[int] = 3  # (n-1)/n² rises from n = 1 to 2, and is convex from 3 on
    group_baseline: str = option("leave_one_out", choice("leave_one_out", "mean"))  # mean: the sample itself in it

    def marginal_gain(self, estimates: PromptEstimates) -> solver.MarginalGain:
        term = {"leave_one_out": solver.leave_one_out, "mean": solver.group_mean}[self.group_baseline]
        return term(4 * estimates.accept_rate * (1 - estimates.accept_rate))
