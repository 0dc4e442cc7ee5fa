"""From prompt statistics to the next step's prompts and their counts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from gvm_jax.allocation import solver, statistics
from gvm_jax.allocation.gvm import Gvm
from gvm_jax.allocation.registry import make_strategy
from gvm_jax.allocation.statistics import PromptEstimates, PromptStatistics, Sums
from gvm_jax.allocation.strategy import Constraints, Progress, Strategy

_GVM = Gvm()


@struct.dataclass
class AllocationInfo:
    """The estimates that the counts were computed from, and the gain that they predict."""

    accept_rate: Float[Array, " m"]  # posterior mean of p
    gradient_norm: Float[Array, " m"]  # shrunk root mean squared norm G
    variance_ratio: Float[Array, ""]  # bound Σ G²/(p·n) at equal counts over the bound at the chosen ones
    ideal_variance_ratio: Float[Array, ""]  # the best such ratio without bounds or rounding, 1 + CV²(G/√p)


@dataclasses.dataclass(frozen=True)
class Allocator:
    """The settings of an allocation; hashable, so it may be a static argument of a jitted function.

    Fields are named as in `config.allocation`, where each is explained.
    """

    strategy: Strategy
    min_samples: int
    max_samples: int  # 0 = no cap
    cost: str
    prompt_temperature: float
    accept_rate_prior: float
    gradient_norm_prior: float
    decay: float  # for `statistics.update`

    @classmethod
    def from_config(cls, config: Any) -> "Allocator":
        """The allocator of the section `config.allocation`; ConfigError if it is none of `make_strategy`'s."""
        fields = {field.name: config[field.name] for field in dataclasses.fields(cls)}
        return cls(**(fields | {"strategy": make_strategy(config)}))

    def choose_prompts(
        self,
        prompt_statistics: PromptStatistics,
        candidates: Int[Array, " pool"],
        num_prompts: int,
        key: Key[Array, ""],
    ) -> Int[Array, " m"]:
        """The step's prompts among its candidates: all, or a draw in proportion to exp(√(p(1-p))/τ).

        CurES, arXiv 2510.01037, with τ = `prompt_temperature`, drawn without replacement by the Gumbel trick. Prompts
        of middling accept rate are then trained on more often than others: the objective moves to them, which no
        weight undoes.
        """
        if candidates.shape[0] == num_prompts:
            return candidates
        p = self.estimate(prompt_statistics, candidates).accept_rate
        logits = jnp.sqrt(p * (1 - p)) / self.prompt_temperature
        _, chosen = jax.lax.top_k(logits + jax.random.gumbel(key, logits.shape), num_prompts)
        return candidates[jnp.sort(chosen)]

    def estimate(self, prompt_statistics: PromptStatistics, prompt_ids: Int[Array, " m"]) -> PromptEstimates:
        """`statistics.estimate` with this allocator's priors."""
        return statistics.estimate(prompt_statistics, prompt_ids, self.accept_rate_prior, self.gradient_norm_prior)

    def next_counts(
        self, prompt_statistics: PromptStatistics, prompt_ids: Int[Array, " m"], budget: ArrayLike
    ) -> tuple[Int[Array, " m"], AllocationInfo]:
        """Counts of a batch's prompts, and their info. Pure; runs inside the jitted step.

        The two variance ratios measure every strategy by the same bound, Lemma 1 of arXiv 2505.02391, so a
        run with equal counts also reports what an allocation could gain.

        Args:
            prompt_statistics: of all prompts.
            prompt_ids: of the batch.
            budget: samples to hand out, an int or a traced int32 scalar.

        Returns:
            n_i, int32, of the first round if the strategy has several; their sum is `budget` (or at most that, with
            rounds) where floors and caps allow it; and the info.
        """
        estimates = self.estimate(prompt_statistics, prompt_ids)
        costs = estimates.response_tokens if self.cost == "tokens" else None
        counts = self.strategy.counts(estimates, self._constraints(prompt_ids.size, budget, costs))
        bound = Gvm(alpha=0.0).coefficients(estimates.accept_rate, estimates.gradient_norm)
        return counts, AllocationInfo(
            accept_rate=estimates.accept_rate,
            gradient_norm=estimates.gradient_norm,
            variance_ratio=solver.variance_ratio(bound, counts),
            ideal_variance_ratio=solver.ideal_variance_ratio(bound),
        )

    def more_counts(self, progress: Progress, budget: ArrayLike) -> Int[Array, " m"]:
        """Counts of the next round, for strategies with rounds, where `budget` samples are left; all 0 = finished."""
        return self.strategy.more(progress, self._constraints(progress.trials.size, budget, None))

    def _constraints(self, prompts: int, budget: ArrayLike, costs: Float[Array, " m"] | None) -> Constraints:
        budget = jnp.asarray(budget, jnp.int32)
        maximum = jnp.broadcast_to(jnp.asarray(self.max_samples or budget, jnp.int32), prompts)
        return Constraints(budget, jnp.full(prompts, self.min_samples, jnp.int32), maximum, costs)


def allocate(
    accept_rates: Float[ArrayLike, " m"],
    gradient_norms: Float[ArrayLike, " m"],
    budget: int,
    strategy: Strategy = _GVM,
    min_samples: int = 1,
    max_samples: int = 0,
) -> Int[np.ndarray, " m"]:
    """Counts of m prompts with known accept rates p and gradient norms G; a run estimates both instead.

    Args:
        accept_rates: p, in [0, 1].
        gradient_norms: G, not negative.
        budget: samples to hand out.
        strategy: `Gvm()` by default; all that another one reads beside p and G is equal for all prompts.
        min_samples, max_samples: floor and cap of a prompt; 0 = no cap.

    Raises:
        ValueError: arrays of different shapes, values out of range, or a budget that the floors or caps do not allow.
    """
    if not isinstance(strategy, Strategy):
        raise ValueError(f"strategy = {strategy!r}: must be a strategy such as Gvm() or load_strategy('cures')()")
    p, norms = np.asarray(accept_rates, np.float32), np.asarray(gradient_norms, np.float32)
    if p.ndim != 1 or p.shape != norms.shape:
        raise ValueError(
            f"accept_rates {p.shape} and gradient_norms {norms.shape}: must have one value for each prompt"
        )
    if not ((p >= 0) & (p <= 1)).all() or not ((norms >= 0) & np.isfinite(norms)).all():
        raise ValueError("accept_rates must be in [0, 1], gradient_norms finite and not negative")
    least, most = p.size * min_samples, max_samples or budget
    if int(budget) != budget or budget < least or budget > p.size * most:
        allowed = f"an integer >= {least}" + (f" and <= {p.size * most}" if max_samples else "")
        raise ValueError(f"budget = {budget}: must be {allowed} for {p.size} prompts")
    ones = jnp.ones(p.shape)
    sums = Sums.zeros(p.size).replace(trials=ones, successes=jnp.asarray(p))
    estimates = PromptEstimates(
        accept_rate=p, successes=p, failures=1 - p, gradient_norm=norms, rejected_norm=norms, response_tokens=ones,
        sums=sums,
    )  # fmt: skip
    bounds = (jnp.full(p.size, samples, jnp.int32) for samples in (min_samples, most))
    return np.asarray(strategy.counts(jax.tree.map(jnp.asarray, estimates), Constraints(jnp.int32(budget), *bounds)))
