"""Steps of a run, hundreds of times over from a pool of samples: what a strategy would draw, and the estimate it gives.

A repetition draws each prompt's samples from the pool with replacement, in an order of its own (a stream). All
strategies see the same streams and differ in how far they read them, so what differs between them is less a matter of
luck. Everything else is the run's own code: statistics and their updates, the strategy, rounds, pilots, and the
objective, whose gradient before the first update is

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
from gvm_jax.allocation.allocator import Allocator
from gvm_jax.allocation.statistics import PromptStatistics, Sums
from gvm_jax.allocation.strategy import Progress
from gvm_jax.allocation.uniform import Uniform
from gvm_jax.lab.pool import Pool
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.training.objectives import Tokens
from gvm_jax.training.step import TrainStep

BATCH = 32  # repetitions computed at once
TOKEN_TOLERANCE = 0.005  # of the tokens that `spend` is to spend
_CERTAIN = 1e6  # visits of the whole pool that stand for knowing it


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A strategy and what it knows of the prompts when the step begins.

    `step` is that of a run with m = `prompts_per_step`: allocator, objective, pilots. Its budget is not read.
    """

    step: TrainStep
    visits: int = 0  # earlier visits of every prompt by the same policy and strategy
    told: bool = False  # knows the pool's accept rates, norms and lengths instead


@struct.dataclass
class Outcomes:
    """R repetitions of a step."""

    coefficients: Float[Array, "R m S"]  # c_j summed over the draws of each sample of the pool
    counts: Int[Array, "R m"]  # samples drawn, pilots included
    tokens: Float[Array, " R"]  # response tokens drawn, pilots included
    useful: Bool[Array, "R m"]  # prompts of which a sample has a gradient
    accept_rates: Float[Array, "R m"]  # p as the allocation believed it


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

    A strategy that samples in rounds may stop before: what it leaves over of twice `budget` is not spent.

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
    everything = dataclasses.replace(
        step, allocator=dataclasses.replace(step.allocator, strategy=Uniform()), pilot_samples=0
    )
    stream = jnp.tile(jnp.arange(samples), (m, copies))
    counts = jnp.full(m, samples * copies)
    return _coefficients(everything, pool, stream, counts, m * samples * copies)


def _step(scenario: Scenario, pool: Pool, budget: Int[Array, ""], longest: int, key: Key[Array, ""]) -> Outcomes:
    m, samples = pool.rewards.shape

    def stream(visit) -> Int[Array, "m longest"]:
        return jax.random.randint(jax.random.fold_in(key, visit), (m, longest), 0, samples)

    def earlier(visit, known: PromptStatistics) -> PromptStatistics:
        return _visit(scenario.step, pool, known, stream(visit), budget, visit)[2]

    known = _everything_known(pool) if scenario.told else statistics.init(m)
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


def _everything_known(pool: Pool) -> PromptStatistics:
    m, samples = pool.rewards.shape
    once = _observe(pool, jnp.tile(jnp.arange(samples), (m, 1)), 0, samples)
    many = jax.tree.map(lambda total: _CERTAIN * total, once)
    return statistics.update(statistics.init(m), jnp.arange(m), many, decay=1.0, step=0)


def _visit(
    step: TrainStep, pool: Pool, known: PromptStatistics, stream: Int[Array, "m longest"], budget: Int[Array, ""], when
) -> tuple[Int[Array, " m"], Float[Array, " m"], PromptStatistics]:
    """Samples drawn of each prompt, pilots included; p as it was believed; and the statistics afterwards."""
    m, allocator, pilots = pool.rewards.shape[0], step.allocator, step.pilot_samples
    prompts, decay = jnp.arange(m), allocator.decay
    if pilots:
        known = statistics.update(known, prompts, _observe(pool, stream, 0, pilots), decay, when)
        decay = 1.0  # one visit
    counts, info = allocator.next_counts(known, prompts, budget - m * pilots)
    if allocator.strategy.rounds:
        counts = _rounds(allocator, pool, stream, counts, budget)
    counts = pilots + counts
    observed = _observe(pool, stream, pilots, counts)
    return counts, info.accept_rate, statistics.update(known, prompts, observed, decay, when)


def _rounds(
    allocator: Allocator, pool: Pool, stream: Int[Array, "m longest"], first: Int[Array, " m"], budget: Int[Array, ""]
) -> Int[Array, " m"]:
    """Samples of each prompt once its strategy asks for no more."""
    accepted = jnp.take_along_axis(pool.rewards > 0, stream, axis=1)
    successes = jnp.pad(jnp.cumsum(accepted, axis=1), ((0, 0), (1, 0)))  # [m, n] of the first n samples

    def next_round(state):
        counts, _, rounds = state
        progress = Progress(
            successes=jnp.take_along_axis(successes, counts[:, None], axis=1)[:, 0], trials=counts, rounds=rounds
        )
        more = allocator.more_counts(progress, budget - counts.sum())
        return counts + more, more, rounds + 1

    return jax.lax.while_loop(lambda state: state[1].any(), next_round, (first, first, jnp.int32(1)))[0]


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


def sample_coefficients(
    step: TrainStep,
    group: Int[Array, " N"],
    rewards: Float[Array, " N"],
    lengths: Int[Array, " N"],
    stopped: Bool[Array, " N"],
    max_response: int,
) -> Float[Array, " N"]:
    """c_j of a step's rows: minus the loss's derivative by log π of a token, at the policy that sampled them.

    It is the same for all tokens of a response, so that of the first is taken, and g_j, the gradient of their sum, is
    all that is needed. A KL penalty is left out.

    Args:
      step: for its objective, strategy and pilots.
      group: prompt of each row, m = `prompts_per_step` for padding; with pilots, those come first.
      rewards: of the rows.
      lengths: response tokens.
      stopped: ended by a stop token.
      max_response: the length limit.
    """
    objective, first_token = step.objective, jnp.zeros((len(group), 1))
    rollouts = Rollouts(
        tokens=jnp.zeros((len(group), 0), jnp.int32), prompt_lengths=jnp.zeros_like(group), response_lengths=lengths,
        logprobs=first_token, group=group, stopped=stopped,
    )  # fmt: skip
    terms = step.sample_terms(rollouts, rewards)
    prompts_per_sample = step.prompts_per_step / jnp.maximum(terms.trained.sum(), 1)
    denominator = objective.denominator(terms, lengths, max_response, prompts_per_sample)

    def loss(logprobs: Float[Array, "N 1"]) -> Float[Array, ""]:
        old = None if objective.importance_cap is None else first_token
        tokens = Tokens.of_rows(jnp.minimum(lengths, 1), 1)
        return objective.loss_sums(logprobs, first_token, old, None, tokens, terms, lengths).loss

    # 0 where no row is trained: then the loss is 0 too.
    return -jax.grad(loss)(first_token)[:, 0] / jnp.where(denominator > 0, denominator, 1.0)
