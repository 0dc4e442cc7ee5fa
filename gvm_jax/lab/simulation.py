"""A training step repeated hundreds of times on samples of a pool: the counts of a strategy and its gradient estimates.

A repetition draws each prompt's samples from the pool with replacement, in an order of its own (a stream). All
strategies see the same streams and differ in how far they read them, so their differences have little noise. Everything
else is the run's own code: statistics and their updates, the strategy, rounds, pilots, and the objective, whose
gradient before the first update is

    ĝ = Σ_j c_j g_j,   c_j = minus the derivative of the loss with respect to log π of a token of sample j.

Pure; the gradients g_j themselves are not needed here.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from gvm_jax.allocation import statistics
from gvm_jax.allocation.statistics import PromptStatistics, Sums
from gvm_jax.allocation.uniform import Uniform
from gvm_jax.lab.frozen_step import TrainStep, allocate, next_round, sample_coefficients, with_strategy
from gvm_jax.lab.pool import Pool

BATCH = 32  # repetitions computed at once
TOKEN_TOLERANCE = 0.005  # relative, of the tokens that `spend` is to spend
_CERTAIN = 1e6  # visits of the whole pool that stand for knowing it


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A strategy and its knowledge of the prompts when the step begins.

    `step` has m = `prompts_per_step` prompts; its budget is not read.
    """

    step: TrainStep
    visits: int = 0  # earlier visits of every prompt by the same policy and strategy
    with_true_statistics: bool = False  # in their place, the pool's accept rates, norms and lengths


@struct.dataclass
class Outcomes:
    """R repetitions of a step."""

    coefficients: Float[Array, "R m S"]  # c_j summed over the draws of each sample of the pool
    counts: Int[Array, "R m"]  # samples drawn, pilots included
    tokens: Float[Array, " R"]  # response tokens drawn, pilots included
    useful: Bool[Array, "R m"]  # prompts of which a sample has a gradient
    accept_rates: Float[Array, "R m"]  # p as the allocation estimated it


@functools.partial(jax.jit, static_argnames=("scenario", "repetitions", "longest"))
def simulate(
    scenario: Scenario, pool: Pool, budget: Int[Array, ""], longest: int, repetitions: int, seed: int
) -> Outcomes:
    """Repeats a step of at most `budget` samples, pilots included.

    Args:
      scenario: static.
      pool: its sketches are not read.
      budget: traced.
      longest: static; the most samples that `budget` may be. Streams depend on it.
      repetitions: R.
      seed: of the streams.
    """
    batch = min(BATCH, repetitions)
    numbers = jnp.arange(repetitions + -repetitions % batch)  # whole batches: a rest would be a program of its own

    def step(number: Int[Array, ""]) -> Outcomes:
        key = jax.random.fold_in(jax.random.key(seed), number)
        return _step(scenario, pool, budget, longest, key)

    return jax.tree.map(lambda x: x[:repetitions], jax.lax.map(step, numbers, batch_size=batch))


def spend(
    scenario: Scenario, pool: Pool, tokens: float, budget: int, repetitions: int, seed: int
) -> tuple[Outcomes, int]:
    """Repeats a step whose budget in samples is such that it takes `tokens` on average, pilots included.

    A strategy that samples in rounds may stop before.

    Args:
      scenario: what to repeat.
      pool: its population.
      tokens: mean response tokens to spend.
      budget: samples that equal counts get for them, from which the search starts; at most twice as many are tried.
      repetitions: R.
      seed: of the streams; the same for all that is to be compared.

    Returns:
      The outcomes, and the budget that they had.
    """
    longest = 2 * budget
    least = pool.rewards.shape[0] * (scenario.step.pilot_samples + scenario.step.allocator.min_samples)
    tried: dict[int, Outcomes] = {}
    while budget not in tried:
        tried[budget] = simulate(scenario, pool, jnp.int32(budget), longest, repetitions, seed)
        spent = float(tried[budget].tokens.mean())
        if abs(spent / tokens - 1) < TOKEN_TOLERANCE:
            return tried[budget], budget
        budget = int(np.clip(round(budget * tokens / spent), least, longest))
    closest = min(tried, key=lambda budget: abs(float(tried[budget].tokens.mean()) - tokens))
    return tried[closest], closest


def target_coefficients(step: TrainStep, pool: Pool, copies: int = 32) -> Float[Array, "m S"]:
    """c_j of the gradient to estimate: the objective's limit for n_i → ∞ of all prompts.

    Each sample of the pool is taken `copies` times. What an objective divides by is then that of infinitely many draws,
    but for the group statistics' n - 1, which is off by 1/(copies · S).
    """
    m, samples = pool.rewards.shape
    stream = jnp.tile(jnp.arange(samples), (m, copies))
    counts = jnp.full(m, samples * copies)
    return _coefficients(with_strategy(step, Uniform()), pool, stream, counts, m * samples * copies)


def _step(scenario: Scenario, pool: Pool, budget: Int[Array, ""], longest: int, key: Key[Array, ""]) -> Outcomes:
    m, samples = pool.rewards.shape

    def stream(visit) -> Int[Array, "m longest"]:
        return jax.random.randint(jax.random.fold_in(key, visit), (m, longest), 0, samples)

    def earlier(visit, known: PromptStatistics) -> PromptStatistics:
        return _visit(scenario.step, pool, known, stream(visit), budget, visit)[2]

    known = _true_statistics(pool) if scenario.with_true_statistics else statistics.init(m)
    known = jax.lax.fori_loop(1, 1 + scenario.visits, earlier, known)
    drawn = stream(0)
    counts, accept_rates, _ = _visit(scenario.step, pool, known, drawn, budget, 1 + scenario.visits)
    coefficients = _coefficients(scenario.step, pool, drawn, counts, longest)
    return Outcomes(
        coefficients=coefficients,
        counts=counts,
        tokens=_observe(pool, drawn, 0, counts).response_tokens.sum(),
        useful=(coefficients != 0).any(axis=1),
        accept_rates=accept_rates,
    )


def _true_statistics(pool: Pool) -> PromptStatistics:
    m, samples = pool.rewards.shape
    once = _observe(pool, jnp.tile(jnp.arange(samples), (m, 1)), 0, samples)
    many = jax.tree.map(lambda total: _CERTAIN * total, once)
    return statistics.update(statistics.init(m), jnp.arange(m), many, decay=1.0, step=0)


def _visit(
    step: TrainStep, pool: Pool, known: PromptStatistics, stream: Int[Array, "m longest"], budget: Int[Array, ""], when
) -> tuple[Int[Array, " m"], Float[Array, " m"], PromptStatistics]:
    """Samples drawn of each prompt, pilots included; the estimate of p; and the statistics afterwards."""
    m, pilots, decay = pool.rewards.shape[0], step.pilot_samples, step.allocator.decay
    prompts = jnp.arange(m)
    if pilots:
        known = statistics.update(known, prompts, _observe(pool, stream, 0, pilots), decay, when)
        decay = 1.0  # one visit
    first, accept_rates = allocate(step, known, budget - m * pilots)
    accepted = jnp.take_along_axis(pool.rewards > 0, stream[:, pilots:], axis=1)
    successes = jnp.pad(jnp.cumsum(accepted, axis=1), ((0, 0), (1, 0)))  # [m, n] of the first n fresh samples

    def another_round(state):
        counts, _, rounds = state
        accepted_so_far = jnp.take_along_axis(successes, counts[:, None], axis=1)[:, 0]
        more = next_round(step, accepted_so_far, counts, rounds, budget - m * pilots - counts.sum())
        return counts + more, more, rounds + 1

    counts = pilots + jax.lax.while_loop(lambda state: state[1].any(), another_round, (first, first, jnp.int32(1)))[0]
    observed = _observe(pool, stream, pilots, counts)
    return counts, accept_rates, statistics.update(known, prompts, observed, decay, when)


def _observe(pool: Pool, stream: Int[Array, "m longest"], begin, end) -> Sums:
    """Sums over samples begin to end - 1 of each prompt's stream, the norms of all of them measured."""
    place = jnp.arange(stream.shape[1])
    inside = (place >= begin) & (place < jnp.broadcast_to(end, stream.shape[0])[:, None])

    def total(values: Array) -> Float[Array, " m"]:
        return jnp.where(inside, jnp.take_along_axis(values, stream, axis=1), 0).sum(axis=1, dtype=jnp.float32)

    accepted = pool.rewards > 0
    return Sums(
        successes=total(accepted),
        trials=inside.sum(axis=1, dtype=jnp.float32),
        response_tokens=total(pool.response_lengths),
        norm_sum=total(pool.norms * accepted),
        squared_norm_sum=total(pool.norms**2 * accepted),
        norm_count=total(accepted),
        rejected_squared_norm_sum=total(pool.norms**2 * ~accepted),
        rejected_norm_count=total(~accepted),
    )


def _coefficients(
    step: TrainStep, pool: Pool, stream: Int[Array, "m longest"], counts: Int[Array, " m"], longest: int
) -> Float[Array, "m S"]:
    """c_j of the first `counts` samples of each stream, summed over the draws of each sample of the pool.

    Rows are those that the step would get: pilots, then fresh samples by prompt, then padding.
    """
    m, pilots = pool.rewards.shape[0], step.pilot_samples
    ends = jnp.cumsum(counts - pilots)
    row = jnp.arange(longest)
    group = jnp.searchsorted(ends, row, side="right")  # m beyond the last sample
    place = pilots + row - (ends - (counts - pilots))[jnp.minimum(group, m - 1)]
    group = jnp.concatenate([jnp.repeat(jnp.arange(m), pilots), group])
    place = jnp.concatenate([jnp.tile(jnp.arange(pilots), m), place])
    prompt, inside = jnp.minimum(group, m - 1), group < m
    sample = stream[prompt, jnp.where(inside, place, 0)]

    def of_rows(values: Array) -> Array:
        return jnp.where(inside, values[prompt, sample], 0)

    coefficients = sample_coefficients(
        step, group, of_rows(pool.rewards), of_rows(pool.response_lengths), of_rows(pool.stopped), pool.max_response
    )
    return jnp.zeros(pool.rewards.shape).at[prompt, sample].add(jnp.where(inside, coefficients, 0))
