"""What is known of each prompt from its earlier samples, and the estimates that the allocation reads from it.

Both estimates are shrunk towards the population of prompts. A prompt with n (decayed) observations of mean x
gets

    w·x + (1 - w)·population,   w = n / (n + prior_strength),   population = Σ w_i x_i / Σ w_i,

the posterior mean of a Beta-binomial model for the accept rate, and of a normal model for the log gradient
norm. The population's mean takes the same weights: they are proportional to the inverse variance of x_i in
these models, and, unlike a plain pool of all samples, they are not ruled by the prompts that an allocation
sampled most, the hard ones.
"""

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

_LARGEST = np.finfo(np.float32).max
_SMALLEST = np.finfo(np.float32).tiny


@struct.dataclass
class PromptStatistics:
    """Arrays indexed by prompt id, the row in the data set; each visit decays the sums of earlier ones."""

    successes: Float[Array, " prompts"]  # accepted samples
    trials: Float[Array, " prompts"]  # samples; never below the successes
    squared_norm_sum: Float[Array, " prompts"]  # Σ ‖gradient‖² over the accepted samples that were measured
    norm_count: Float[Array, " prompts"]  # the samples in that sum
    response_tokens: Float[Array, " prompts"]  # Σ tokens of the samples' responses
    visits: Int[Array, " prompts"]  # updates that had samples of this prompt; not decayed


def init(num_prompts: int) -> PromptStatistics:
    """Statistics of `num_prompts` prompts, ids 0 to num_prompts - 1, before any sample."""
    # One array each: a step that donates its state must not see the same buffer twice.
    zeros = (jnp.zeros(num_prompts, jnp.float32) for _ in range(5))
    return PromptStatistics(*zeros, visits=jnp.zeros(num_prompts, jnp.int32))


def update(
    statistics: PromptStatistics,
    prompt_ids: Int[Array, " m"],
    successes: Float[Array, " m"],
    trials: Float[Array, " m"],
    squared_norm_sum: Float[Array, " m"],
    norm_count: Float[Array, " m"],
    response_tokens: Float[Array, " m"],
    decay: ArrayLike,
) -> PromptStatistics:
    """Adds one visit of each prompt: new = decay · old + observed, for all sums alike.

    Squared norms are summed because the variance bound contains E‖gradient‖² (arXiv 2505.02391, Lemma 1),
    which sums of norms or of their logarithms do not determine. Only a positive and finite sum is a
    measurement; any other counts as none.

    Args:
        statistics: what is known so far.
        prompt_ids: distinct ids; an id outside [0, num_prompts), as padding has, changes nothing.
        successes: accepted samples, clipped to [0, trials].
        trials: samples drawn; where it is 0 nothing changes, and nothing decays.
        squared_norm_sum: Σ ‖gradient‖² over the measured accepted samples.
        norm_count: how many were measured.
        response_tokens: Σ tokens of the samples' responses.
        decay: in [0, 1]; 1 forgets nothing.
    """
    num_prompts = statistics.trials.shape[0]
    visited = _in_range(prompt_ids, num_prompts) & (trials > 0) & jnp.isfinite(trials)
    measured = (squared_norm_sum > 0) & jnp.isfinite(squared_norm_sum) & (norm_count > 0) & jnp.isfinite(norm_count)
    rows = jnp.where(visited, prompt_ids, num_prompts)  # out of range: read as 0, written nowhere

    def add(old: Float[Array, " prompts"], observed: Float[Array, " m"]) -> Float[Array, " prompts"]:
        total = decay * _rows_of(old, rows) + observed
        return old.at[rows].set(jnp.minimum(total, _LARGEST), mode="drop")

    new_trials = add(statistics.trials, trials)
    new_successes = add(statistics.successes, jnp.clip(jnp.nan_to_num(successes), 0, trials))
    return PromptStatistics(
        successes=jnp.minimum(new_successes, new_trials),  # the two may round apart
        trials=new_trials,
        squared_norm_sum=add(statistics.squared_norm_sum, jnp.where(measured, squared_norm_sum, 0)),
        norm_count=add(statistics.norm_count, jnp.where(measured, norm_count, 0)),
        response_tokens=add(statistics.response_tokens, jnp.maximum(jnp.nan_to_num(response_tokens), 0)),
        visits=statistics.visits.at[rows].add(1, mode="drop"),
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
    rate = statistics.successes / jnp.maximum(statistics.trials, _SMALLEST)
    weight = _weight(statistics.trials, prior_strength)
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
    measured = (statistics.squared_norm_sum > 0) & (statistics.norm_count > 0)
    squared = jnp.where(measured, statistics.squared_norm_sum, 1) / jnp.where(measured, statistics.norm_count, 1)
    log_norm = 0.5 * jnp.log(jnp.clip(squared, _SMALLEST, _LARGEST))
    weight = jnp.where(measured, _weight(statistics.norm_count, prior_strength), 0)
    population = jnp.sum(weight * log_norm) / jnp.maximum(jnp.sum(weight), _SMALLEST)
    return jnp.exp(_shrink(log_norm, weight, population, prompt_ids))


def response_length(statistics: PromptStatistics, prompt_ids: Int[Array, " m"]) -> Float[Array, " m"]:
    """Mean response tokens of each prompt's samples; of a prompt without samples, the mean over the others (or 0).

    Args:
        statistics: the statistics of all prompts.
        prompt_ids: the prompts asked for; an id outside [0, num_prompts) counts as without samples.
    """
    mean = statistics.response_tokens / jnp.maximum(statistics.trials, _SMALLEST)
    known = (statistics.trials > 0).astype(jnp.float32)
    population = jnp.sum(known * mean) / jnp.maximum(jnp.sum(known), 1)
    return _shrink(mean, known, population, prompt_ids)


def _weight(count: Float[Array, " prompts"], prior_strength: ArrayLike) -> Float[Array, " prompts"]:
    return count / jnp.maximum(count + prior_strength, _SMALLEST)


def _shrink(
    mean: Float[Array, " prompts"],
    weight: Float[Array, " prompts"],
    population: Float[Array, ""],
    prompt_ids: Int[Array, " m"],
) -> Float[Array, " m"]:
    num_prompts = mean.shape[0]
    rows = jnp.where(_in_range(prompt_ids, num_prompts), prompt_ids, num_prompts)
    weight = _rows_of(weight, rows)
    return weight * _rows_of(mean, rows) + (1 - weight) * population


def _rows_of(values: Float[Array, " prompts"], rows: Int[Array, " m"]) -> Float[Array, " m"]:
    return values.at[rows].get(mode="fill", fill_value=0)


def _in_range(prompt_ids: Int[Array, " m"], num_prompts: int) -> Bool[Array, " m"]:
    return (prompt_ids >= 0) & (prompt_ids < num_prompts)
