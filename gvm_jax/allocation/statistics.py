"""Statistics of each prompt's earlier samples, and the estimates that an allocation reads from them.

The estimates are shrunk towards the population of prompts. A prompt with n (decayed) observations of mean x gets

    w·x + (1 - w)·population,   w = n / (n + prior_strength),   population = Σ w_i x_i / Σ w_i,

the posterior mean of a Beta-binomial model for the accept rate, and of a normal model for the log gradient
norm. The population's mean takes the same weights: they are proportional to the inverse variance of x_i in
these models, and, unlike a plain pool of all samples, they are not ruled by the prompts that an allocation
sampled most, the hard ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

_LARGEST = np.finfo(np.float32).max
_SMALLEST = np.finfo(np.float32).tiny


@struct.dataclass
class Sums:
    """Sums over samples, one row a prompt: of one visit, or decayed over all of them."""

    successes: Float[Array, " m"]  # accepted samples
    trials: Float[Array, " m"]  # samples; never below the successes
    response_tokens: Float[Array, " m"]  # tokens of the samples' responses
    norm_sum: Float[Array, " m"]  # ‖gradient‖ over the accepted samples that were measured
    squared_norm_sum: Float[Array, " m"]  # ‖gradient‖² over the same
    norm_count: Float[Array, " m"]  # number of these
    rejected_squared_norm_sum: Float[Array, " m"]  # ‖gradient‖² over the rejected samples that were measured
    rejected_norm_count: Float[Array, " m"]  # number of these

    @classmethod
    def zeros(cls, rows: int) -> "Sums":
        # An array each: a step that donates its state must not see the same buffer twice.
        return cls(*(jnp.zeros(rows, jnp.float32) for _ in cls.__dataclass_fields__))


@struct.dataclass
class PromptStatistics:
    """Arrays indexed by prompt id, the row in the data set; each visit decays the sums of earlier ones."""

    sums: Sums
    last_step: Int[Array, " prompts"]  # the step of the last visit; -1 = never visited


@struct.dataclass
class PromptEstimates:
    """Estimates of a batch's prompts, and the decayed sums behind them."""

    accept_rate: Float[Array, " m"]  # posterior mean of p, in (0, 1) for a positive prior
    successes: Float[Array, " m"]  # the posterior Beta(successes, failures) of p, the prior's pseudo-samples included
    failures: Float[Array, " m"]
    gradient_norm: Float[Array, " m"]  # G: shrunk root mean squared norm over accepted samples
    rejected_norm: Float[Array, " m"]  # the same over rejected ones
    response_tokens: Float[Array, " m"]  # mean tokens of a response; 1 while nothing is known
    sums: Sums  # of the batch's prompts, without any prior


def init(num_prompts: int) -> PromptStatistics:
    """Statistics of `num_prompts` prompts, ids 0 to num_prompts - 1, before any sample."""
    return PromptStatistics(Sums.zeros(num_prompts), jnp.full(num_prompts, -1, jnp.int32))


def update(
    statistics: PromptStatistics, prompt_ids: Int[Array, " m"], visit: Sums, decay: ArrayLike, step: ArrayLike
) -> PromptStatistics:
    """Adds one visit of each prompt: new = decay · old + observed, for all sums alike.

    Squared norms are summed because the variance bound contains E‖gradient‖² (arXiv 2505.02391, Lemma 1), which sums
    of norms or of their logarithms do not determine; the norms themselves are averaged by the paper's Algorithm 2.
    Only a positive and finite sum is a measurement; any other counts as none.

    Args:
        statistics: of all prompts so far.
        prompt_ids: distinct.
        visit: of each of these prompts; where `trials` is 0 nothing changes, and nothing decays. Successes are clipped
            to [0, trials].
        decay: in [0, 1]; 1 forgets nothing.
        step: of the visit.
    """
    visited = (visit.trials > 0) & jnp.isfinite(visit.trials)
    rows = jnp.where(visited, prompt_ids, statistics.last_step.shape[0])  # out of range, so written nowhere

    def add(old: Float[Array, " prompts"], observed: Float[Array, " m"]) -> Float[Array, " prompts"]:
        total = decay * old[prompt_ids] + observed
        return old.at[rows].set(jnp.minimum(total, _LARGEST), mode="drop")

    sums = jax.tree.map(add, statistics.sums, _clean(visit))
    sums = sums.replace(successes=jnp.minimum(sums.successes, sums.trials))  # the two may round apart
    return PromptStatistics(sums, statistics.last_step.at[rows].set(step, mode="drop"))


def _clean(visit: Sums) -> Sums:
    """The visit with 0 in place of values that are no measurement."""

    def measured(total, count):
        return (total > 0) & jnp.isfinite(total) & (count > 0) & jnp.isfinite(count)

    accepted = measured(visit.squared_norm_sum, visit.norm_count) & measured(visit.norm_sum, visit.norm_count)
    rejected = measured(visit.rejected_squared_norm_sum, visit.rejected_norm_count)
    return visit.replace(
        successes=jnp.clip(jnp.nan_to_num(visit.successes), 0, visit.trials),
        response_tokens=jnp.maximum(jnp.nan_to_num(visit.response_tokens), 0),
        norm_sum=jnp.where(accepted, visit.norm_sum, 0),
        squared_norm_sum=jnp.where(accepted, visit.squared_norm_sum, 0),
        norm_count=jnp.where(accepted, visit.norm_count, 0),
        rejected_squared_norm_sum=jnp.where(rejected, visit.rejected_squared_norm_sum, 0),
        rejected_norm_count=jnp.where(rejected, visit.rejected_norm_count, 0),
    )


def estimate(
    statistics: PromptStatistics,
    prompt_ids: Int[Array, " m"],
    accept_rate_prior: ArrayLike,
    gradient_norm_prior: ArrayLike,
) -> PromptEstimates:
    """Estimates of a batch's prompts.

    The Beta prior of the accept rate has the population's mean, to which one more prompt with rate 1/2 is added: that
    is the estimate before there is any data, and it keeps the mean off 0 and 1. Without a prior most hard prompts would
    look impossible: at p = 0.05, 66 % have none accepted among 8 samples.

    Args:
        statistics: of all prompts.
        prompt_ids: of the batch.
        accept_rate_prior: pseudo-samples of the prior, at least 0; 0 gives accepted/drawn where there are samples.
        gradient_norm_prior: likewise; 0 gives the prompt's root mean square where a norm was measured.
    """
    sums = statistics.sums
    rate = sums.successes / jnp.maximum(sums.trials, _SMALLEST)
    weight = _weight(sums.trials, accept_rate_prior)
    population = (jnp.sum(weight * rate) + 0.5) / (jnp.sum(weight) + 1)
    p = jnp.clip(_shrink(rate, weight, population, prompt_ids), 0, 1)  # two large sums may round apart
    seen = jax.tree.map(lambda x: x[prompt_ids], sums)
    total = seen.trials + accept_rate_prior
    return PromptEstimates(
        accept_rate=p,
        successes=p * total,
        failures=(1 - p) * total,
        gradient_norm=_norm(sums.squared_norm_sum, sums.norm_count, prompt_ids, gradient_norm_prior),
        rejected_norm=_norm(sums.rejected_squared_norm_sum, sums.rejected_norm_count, prompt_ids, gradient_norm_prior),
        response_tokens=jnp.maximum(response_length(statistics, prompt_ids), 1),
        sums=seen,
    )


def response_length(statistics: PromptStatistics, prompt_ids: Int[Array, " m"]) -> Float[Array, " m"]:
    """Mean response tokens of each prompt's samples; of a prompt without samples, the mean over the others (or 0)."""
    sums = statistics.sums
    mean = sums.response_tokens / jnp.maximum(sums.trials, _SMALLEST)
    known = (sums.trials > 0).astype(jnp.float32)
    population = jnp.sum(known * mean) / jnp.maximum(jnp.sum(known), 1)
    return _shrink(mean, known, population, prompt_ids)


def age(statistics: PromptStatistics, prompt_ids: Int[Array, " m"], step: ArrayLike) -> Float[Array, " m"]:
    """Steps since each prompt's last visit; NaN for a prompt that was never visited."""
    last = statistics.last_step[prompt_ids]
    return jnp.where(last >= 0, step - last, jnp.nan)


def _norm(
    squared_norm_sum: Float[Array, " prompts"],
    norm_count: Float[Array, " prompts"],
    prompt_ids: Int[Array, " m"],
    prior_strength: ArrayLike,
) -> Float[Array, " m"]:
    """G, positive and finite, log-normal about the population; 1 for all while nothing has been measured.

    G² = E‖gradient‖² as the variance bound has it (arXiv 2505.02391, Lemma 1); the paper's Algorithm 2 takes the mean
    norm instead. The logarithm of the prompt's RMS is shrunk: norms differ between prompts by factors, and one large
    norm then moves the population's mean little.
    """
    measured = (squared_norm_sum > 0) & (norm_count > 0)
    squared = jnp.where(measured, squared_norm_sum, 1) / jnp.where(measured, norm_count, 1)
    log_norm = 0.5 * jnp.log(jnp.clip(squared, _SMALLEST, _LARGEST))
    weight = jnp.where(measured, _weight(norm_count, prior_strength), 0)
    population = jnp.sum(weight * log_norm) / jnp.maximum(jnp.sum(weight), _SMALLEST)
    return jnp.exp(_shrink(log_norm, weight, population, prompt_ids))


def _weight(count: Float[Array, " prompts"], prior_strength: ArrayLike) -> Float[Array, " prompts"]:
    return count / jnp.maximum(count + prior_strength, _SMALLEST)


def _shrink(
    mean: Float[Array, " prompts"],
    weight: Float[Array, " prompts"],
    population: Float[Array, ""],
    prompt_ids: Int[Array, " m"],
) -> Float[Array, " m"]:
    weight = weight[prompt_ids]
    return weight * mean[prompt_ids] + (1 - weight) * population
