"""Simulated steps against closed forms, loops over plain Python numbers, and what is unbiased by construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gvm_jax.lab.frozen_step import sample_coefficients
from gvm_jax.lab.gradient_errors import measure, ratio
from gvm_jax.lab.simulation import Scenario, simulate, spend, target_coefficients
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.training.objectives import ALGORITHMS, Tokens

RATES = (0.1, 0.3, 0.5, 0.9)


def run(step, pool, budget, repetitions=400, longest=None, **knowledge):
    return simulate(Scenario(step, **knowledge), pool, jnp.int32(budget), longest or budget, repetitions, 0)


def measured(step, pool, outcomes):
    return measure(pool, outcomes, np.asarray(target_coefficients(step, pool)))


def streams(pool, repetitions, longest):
    """The samples that `simulate` draws: [R, m, longest]."""
    m, samples = pool.rewards.shape

    def stream(number):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), number), 0)
        return jax.random.randint(key, (m, longest), 0, samples)

    return np.asarray(jax.vmap(stream)(jnp.arange(repetitions)))


def reward_variance(pool, counts):
    """tr Cov of Σ_i mean of r·g over n_i draws, over ‖g‖²."""
    values = pool.rewards[..., None] * pool.sketches.astype(np.float64)
    mean = values.mean(1)
    within = (np.square(values).sum(2).mean(1) - np.square(mean).sum(1)) / counts
    return within.sum() / np.square(mean.sum(0)).sum()


def test_equal_counts_have_the_closed_form_variance_and_no_bias(lab_config, make_step, make_pool):
    pool = make_pool(RATES)
    step = make_step(lab_config(4, 20, objective__weighting="reward"))
    result = measured(step, pool, run(step, pool, 20, repetitions=1000))
    expected = reward_variance(pool, 5)
    tolerance = 4 * result.deviations.std() / np.sqrt(1000)
    assert abs(result.variance - expected) < tolerance < 0.2 * expected
    assert abs(result.squared_bias) < 4 * result.squared_bias_error


@pytest.mark.parametrize(
    ("objective", "entry"),
    [
        (("reinforce", "reward"), "gvm"),
        (("reinforce", "reward"), "gvm:allocation.mode=pilot:allocation.pilot_samples=2"),
        (("rloo", "reward"), "vip:allocation.min_samples=3"),
    ],
)
def test_unbiased_estimates_are_found_unbiased(lab_config, make_step, make_pool, objective, entry):
    algorithm, weighting = objective
    config = lab_config(4, 32, objective__algorithm=algorithm, objective__weighting=weighting)
    pool, step = make_pool(RATES), make_step(config, entry)
    result = measured(step, pool, run(step, pool, 32, repetitions=1500, visits=1))
    assert abs(result.squared_bias) < 4 * result.squared_bias_error < 0.1 * result.variance


def test_a_bias_is_found(lab_config, make_step, make_pool):
    """Of accepted samples weighed by 1/k, a prompt keeps 1 − (1−p)^n of its gradient."""
    pool = make_pool(RATES)
    step = make_step(lab_config(4, 12, objective__weighting="log_likelihood"))
    result = measured(step, pool, run(step, pool, 12, repetitions=1000))
    p = pool.accept_rates
    means = (pool.rewards[..., None] * pool.sketches).sum(1) / pool.rewards.sum(1)[:, None]
    lost = ((1 - p) ** 3) @ means
    expected = np.linalg.norm(lost) / np.linalg.norm(means.sum(0))
    bias, error = result.bias
    assert abs(bias - expected) < 4 * error < 0.2 * expected


def test_discarded_pilots_cost_their_share_of_the_budget(lab_config, make_step, make_pool):
    """(n̄ + N')/n̄ with n̄ = 5 fresh samples a prompt and N' = 3 pilots, equal counts before and after."""
    config = lab_config(4, 32, objective__algorithm="reinforce", objective__weighting="reward")
    pool, plain = make_pool(RATES), make_step(config)
    config.allocation.mode, config.allocation.pilot_samples, config.allocation.pilot_weight = "pilot", 3, 1e-6
    equal_again = "gvm_rates:allocation.accept_rate_prior=1e9"  # believes that all prompts are alike
    discarding = make_step(config, equal_again)
    outcomes = run(discarding, pool, 32, repetitions=2000)
    np.testing.assert_array_equal(outcomes.counts, 8)
    discarded = measured(discarding, pool, outcomes)
    _, low, high = ratio(discarded.deviations, measured(plain, pool, run(plain, pool, 32, 2000)).deviations)
    assert low < 8 / 5 < high and high / low < 1.25


def test_rounds_read_a_prefix_of_each_stream(lab_config, make_step, make_pool):
    config = lab_config(4, 64)
    entry = "reinforce_ada_seq:allocation.options.accepted_wanted=1:allocation.options.rejected_wanted=0"
    pool, step = make_pool(RATES), make_step(config, entry)
    outcomes, drawn = run(step, pool, 64, repetitions=32), streams(pool, 32, 64)
    for r, i in np.ndindex(32, 4):
        rewards = pool.rewards[i, drawn[r, i]]
        expected = next(n for n in (4, 8, 12, 16) if rewards[:n].any() or n == 16)
        assert outcomes.counts[r, i] == expected
    lengths = [
        sum(pool.response_lengths[i, drawn[r, i, : outcomes.counts[r, i]]].sum() for i in range(4)) for r in range(32)
    ]
    np.testing.assert_array_equal(outcomes.tokens, lengths)
    short = run(step, pool, 20, repetitions=32, longest=64)
    assert (short.counts <= outcomes.counts).all() and short.counts.sum(1).max() <= 20


def test_coefficients_are_those_of_the_drawn_samples(lab_config, make_step, make_pool):
    pool, step = make_pool(RATES), make_step(lab_config(4, 24))
    outcomes, drawn = run(step, pool, 24, repetitions=5), streams(pool, 5, 24)
    expected = np.zeros_like(outcomes.coefficients)
    for r, i in np.ndindex(5, 4):
        accepted = [j for j in drawn[r, i, :6] if pool.rewards[i, j]]
        for j in accepted:
            expected[r, i, j] += 1 / len(accepted) / (4 * pool.max_response)
    np.testing.assert_allclose(outcomes.coefficients, expected, rtol=1e-5)
    np.testing.assert_array_equal(outcomes.useful, expected.any(2))


def test_all_strategies_see_the_same_streams(lab_config, make_step, make_pool):
    config = lab_config(4, 24)
    pool = make_pool(RATES)
    plain, other = (run(make_step(config, entry), pool, 24, 8, visits=v) for entry, v in (("uniform", 0), ("cero", 3)))
    fewer = np.minimum(plain.counts, other.counts)
    drawn = streams(pool, 8, 24)
    for r, i in np.ndindex(8, 4):
        seen = set(drawn[r, i, : fewer[r, i]][pool.rewards[i, drawn[r, i, : fewer[r, i]]] > 0].tolist())
        assert seen <= set(np.flatnonzero(plain.coefficients[r, i]).tolist())
        assert seen <= set(np.flatnonzero(other.coefficients[r, i]).tolist())


@pytest.mark.parametrize("entry", ["gvm:allocation.cost=tokens", "gvm:allocation.mode=pilot", "gvm+dropped"])
def test_the_tokens_of_equal_counts_are_spent(lab_config, make_step, make_pool, entry):
    config = lab_config(20, 400)
    pool = make_pool(np.linspace(0.05, 0.95, 20), max_response=30)
    tokens = 400 * pool.response_lengths.mean()
    outcomes, budget = spend(Scenario(make_step(config, entry), visits=1), pool, tokens, 400, 40, 0)
    assert abs(outcomes.tokens.mean() / tokens - 1) < 0.005
    assert outcomes.counts.sum(1).max() <= budget


def test_knowledge_grows_with_visits_and_ends_in_the_truth(lab_config, make_step, make_pool):
    config = lab_config(12, 96, allocation__decay=1.0)
    pool = make_pool(np.linspace(0.05, 0.95, 12))
    step = make_step(config, "gvm")
    scores = [measured(step, pool, run(step, pool, 96, 100, visits=v)).brier for v in (0, 1, 8)]
    result = measured(step, pool, run(step, pool, 96, 100, with_true_statistics=True))
    assert scores[0] > scores[1] > scores[2] > result.brier
    np.testing.assert_allclose(result.brier, result.brier_truth, rtol=1e-4)
    np.testing.assert_allclose(scores[0], np.mean((0.5 - pool.accept_rates) ** 2) + result.brier_truth, rtol=1e-4)


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_all_tokens_of_a_response_weigh_the_same(lab_config, make_step, algorithm):
    """The first token speaks for all: the loss's whole derivative, token by token."""
    step = make_step(lab_config(3, 12, objective__algorithm=algorithm))
    random = np.random.default_rng(0)
    group, lengths = np.repeat(np.arange(4), 3), random.integers(1, 6, 12).astype(np.int32)  # the last are padding
    rewards = random.integers(0, 2, 12).astype(np.float32) * (group < 3)
    stopped = np.ones(12, bool)
    chosen = sample_coefficients(step, group, rewards, lengths, stopped, max_response=5)

    logprobs = jnp.full((12, 5), -0.5)
    rollouts = Rollouts(np.zeros((12, 7), np.int32), np.full(12, 2), lengths, logprobs, group, stopped)
    terms = step.sample_terms(rollouts, rewards)
    denominator = step.objective.denominator(terms, lengths, 5, 3 / 9)

    def loss(x):
        tokens = Tokens.of_rows(lengths, 5)
        return step.objective.loss_sums(x, logprobs, None, None, tokens, terms, lengths).loss

    inside = np.arange(5) < lengths[:, None]
    expected = np.where(inside, np.asarray(chosen)[:, None], 0)
    np.testing.assert_allclose(-jax.grad(loss)(logprobs) / denominator, expected, rtol=1e-5, atol=1e-7)
    assert np.abs(expected).max() > 0
