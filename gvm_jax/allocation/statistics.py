"""What is known of each prompt from its earlier samples, and the estimates that the allocation reads from it.

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
from jaxtyping import Array, Bool, Float, Int

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
    norm_count: Float[Array, " m"]  # how many they are
    rejected_squared_norm_sum: Float[Array, " m"]  # ‖gradient‖² over the rejected samples that were measured
    rejected_norm_count: Float[Array, " m"]  # how many they are

    @classmethod
    def zeros(cls, rows: int) -> "Sums":
        """Of no samples."""
        # An array each: a step that donates its state must not see the same buffer twice.
        return cls(*(jnp.zeros(rows, jnp.float32) for _ in cls.__dataclass_fields__))


@struct.dataclass
class PromptStatistics:
    """Arrays indexed by prompt id, the row in the data set; each visit decays the sums of earlier ones."""

    sums: Sums
    last_step: Int[Array, " prompts"]  # the step of the last visit; -1 = never visited


@struct.dataclass
class PromptEstimates:
    """Estimates for the prompts of a batch, and the decayed sums behind them."""

    accept_rate: Float[Array, " m"]  # posterior mean of p
    successes: Float[Array, " m"]  # the posterior Beta(successes, failures) of p, the prior's pseudo-samples included
    failures: Float[Array, " m"]
    gradient_norm: Float[Array, " m"]  # G: shrunk root mean squared norm over accepted samples
    rejected_norm: Float[Array, " m"]  # the same over rejected ones
    response_tokens: Float[Array, " m"]  # mean tokens of a response; 1 while nothing is known
    sums: Sums  # rows of the batch: what was seen, without any prior


def init(num_prompts: int) -> PromptStatistics:
    """Statistics of `num_prompts` prompts, ids 0 to num_prompts - 1, before any sample."""
    return PromptStatistics(Sums.zeros(num_prompts), jnp.full(num_prompts, -1, jnp.int32))


def update(
    statistics: PromptStatistics, prompt_ids: Int[Array, " m"], visit: Sums, decay: ArrayLike, step: ArrayLike
) -> PromptStatistics:
    """Adds one visit of each prompt: new = decay · old + observed, for all sums alike.

    Squared norms are summed because the variance bound contains E‖gradient‖² (arXiv 2505.02391, Lemma 1), which sums
    of norms or of their logarithms do not determine; the norms themselves are what the paper's Algorithm 2 averages.
    Only a positive and finite sum is a measurement; any other counts as none.

    Args:
        statistics: what is known so far.
        prompt_ids: distinct ids; an id outside [0, num_prompts), as padding has, changes nothing.
        visit: of each of these prompts; where `trials` is 0 nothing changes, and nothing decays. Successes are clipped
            to [0, trials].
        decay: in [0, 1]; 1 forgets nothing.
        step: of the visit.
    """
    num_prompts = statistics.last_step.shape[0]
    visited = _in_range(prompt_ids, num_prompts) & (visit.trials > 0) & jnp.isfinite(visit.trials)
    rows = jnp.where(visited, prompt_ids, num_prompts)  # out of range: read as 0, written nowhere

    def add(old: Float[Array, " prompts"], observed: Float[Array, " m"]) -> Float[Array, " prompts"]:
        total = decay * _rows_of(old, rows) + observed
        return old.at[rows].set(jnp.minimum(total, _LARGEST), mode="drop")

    sums = jax.tree.map(add, statistics.sums, _clean(visit))
    sums = sums.replace(successes=jnp.minimum(sums.successes, sums.trials))  # the two may round apart
    return PromptStatistics(sums, statistics.last_step.at[rows].set(step, mode="drop"))


def _clean(visit: Sums) -> Sums:
    """The visit without values that are no measurement."""

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
    """All that a strategy may read of the prompts of a batch.

    Args:
        statistics: the statistics of all prompts.
        prompt_ids: the prompts asked for; an id outside [0, num_prompts) gets the population's values.
        accept_rate_prior: as for `accept_rate`.
        gradient_norm_prior: as for `gradient_norm`.
    """
    seen = jax.tree.map(lambda x: _rows_of(x, _valid_rows(prompt_ids, x.shape[0])), statistics.sums)
    rate = accept_rate(statistics, prompt_ids, accept_rate_prior)
    total = seen.trials + accept_rate_prior
    sums = statistics.sums
    return PromptEstimates(
        accept_rate=rate,
        successes=rate * total,
        failures=(1 - rate) * total,
        gradient_norm=gradient_norm(statistics, prompt_ids, gradient_norm_prior),
        rejected_norm=_norm(sums.rejected_squared_norm_sum, sums.rejected_norm_count, prompt_ids, gradient_norm_prior),
        response_tokens=jnp.maximum(response_length(statistics, prompt_ids), 1),
        sums=seen,
    )


def accept_rate(
    statistics: PromptStatistics, prompt_ids: Int[Array, " m"], prior_strength: ArrayLike
) -> Float[Array, " m"]:
    """Posterior mean of each prompt's accept rate p, in (0, 1) for a positive `prior_strength`.

    The Beta prior has the population's mean, to which one more prompt with rate 1/2 is added: it is what is
    returned before there is any data, and it keeps the mean off 0 and 1. Without a prior most hard prompts
    would look impossible: at p = 0.05, 66 % have none accepted among 8 samples.

    Args:
        statistics: the statistics of all prompts.
        prompt_ids: the prompts asked for; an id outside [0, num_prompts) gets the population's mean.
        prior_strength: pseudo-samples of the prior, at least 0; 0 gives accepted/drawn where there are
            samples.
    """
    sums = statistics.sums
    rate = sums.successes / jnp.maximum(sums.trials, _SMALLEST)
    weight = _weight(sums.trials, prior_strength)
    population = (jnp.sum(weight * rate) + 0.5) / (jnp.sum(weight) + 1)
    return jnp.clip(_shrink(rate, weight, population, prompt_ids), 0, 1)  # two large sums may round apart


def gradient_norm(
    statistics: PromptStatistics, prompt_ids: Int[Array, " m"], prior_strength: ArrayLike
) -> Float[Array, " m"]:
    """Estimate of each prompt's root mean squared gradient norm G, log-normal about the population.

    G² = E‖gradient‖² over accepted samples, as the variance bound has it (arXiv 2505.02391, Lemma 1); the
    paper's Algorithm 2 takes the mean norm instead. The logarithm of the prompt's RMS is what is shrunk:
    norms differ between prompts by factors, and one large norm then moves the population's mean little.

    Args:
        statistics: the statistics of all prompts.
        prompt_ids: the prompts asked for; an id outside [0, num_prompts) gets the population's value.
        prior_strength: pseudo-samples of the prior, at least 0; 0 gives the prompt's RMS where there is one.

    Returns:
        G, positive and finite; 1 for all while nothing has been measured.
    """
    sums = statistics.sums
    return _norm(sums.squared_norm_sum, sums.norm_count, prompt_ids, prior_strength)


def response_length(statistics: PromptStatistics, prompt_ids: Int[Array, " m"]) -> Float[Array, " m"]:
    """Mean response tokens of each prompt's samples; of a prompt without samples, the mean over the others (or 0).

    Args:
        statistics: the statistics of all prompts.
        prompt_ids: the prompts asked for; an id outside [0, num_prompts) counts as without samples.
    """
    sums = statistics.sums
    mean = sums.response_tokens / jnp.maximum(sums.trials, _SMALLEST)
    known = (sums.trials > 0).astype(jnp.float32)
    population = jnp.sum(known * mean) / jnp.maximum(jnp.sum(known), 1)
    return _shrink(mean, known, population, prompt_ids)


def age(statistics: PromptStatistics, prompt_ids: Int[Array, " m"], step: ArrayLike) -> Float[Array, " m"]:
    """Steps since each prompt's last visit; NaN for a prompt that was never visited."""
    num_prompts = statistics.last_step.shape[0]
    last = statistics.last_step.at[_valid_rows(prompt_ids, num_prompts)].get(mode="fill", fill_value=-1)
    return jnp.where(last >= 0, step - last, jnp.nan)


def _norm(
    squared_norm_sum: Float[Array, " prompts"],
    norm_count: Float[Array, " prompts"],
    prompt_ids: Int[Array, " m"],
    prior_strength: ArrayLike,
) -> Float[Array, " m"]:
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
    rows = _valid_rows(prompt_ids, mean.shape[0])
    weight = _rows_of(weight, rows)
    return weight * _rows_of(mean, rows) + (1 - weight) * population


def _valid_rows(prompt_ids: Int[Array, " m"], num_prompts: int) -> Int[Array, " m"]:
    """The ids, with `num_prompts` for those out of range: a negative index would count from the end."""
    return jnp.where(_in_range(prompt_ids, num_prompts), prompt_ids, num_prompts)


def _rows_of(values: Float[Array, " prompts"], rows: Int[Array, " m"]) -> Float[Array, " m"]:
    return jnp.asarray(values).at[rows].get(mode="fill", fill_value=0)


def _in_range(prompt_ids: Int[Array, " m"], num_prompts: int) -> Bool[Array, " m"]:
    return (prompt_ids >= 0) & (prompt_ids < num_prompts)
