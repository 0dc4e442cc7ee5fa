"""The table of errors against simulation, and its counts against brute force and the bound 1 + CV²."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from gvm_jax.lab import oracle
from gvm_jax.lab.frozen_step import with_strategy
from gvm_jax.lab.gradient_errors import measure
from gvm_jax.lab.oracle import ErrorTable, best_counts, convex_gains, error_table
from gvm_jax.lab.simulation import Scenario, simulate, target_coefficients
from gvm_jax.lab.variance_study import Fixed

RATES = (0.1, 0.3, 0.6, 0.9)
COUNTS = (7, 5, 3, 4)


@pytest.mark.parametrize(
    ("algorithm", "weighting"),
    [("raft_pp", "log_likelihood"), ("reinforce", "reward"), ("rloo", "reward"), ("grpo", "sequence_mean")],
)
def test_the_table_is_what_simulation_finds(lab_config, make_step, make_pool, algorithm, weighting):
    config = lab_config(4, 20, objective__algorithm=algorithm, objective__weighting=weighting)
    pool, step = make_pool(RATES), make_step(config)
    table = error_table(step, pool, most=10)
    target = np.asarray(target_coefficients(step, pool))
    unit = np.square(target.ravel() @ pool.sketches.reshape(target.size, -1)).sum()
    fixed = with_strategy(step, Fixed(COUNTS))
    result = measure(pool, simulate(Scenario(fixed), pool, jnp.int32(19), 19, 3000, 0), target)
    tolerance = 4 * result.errors.std() / np.sqrt(3000)
    assert abs(table.error(np.array(COUNTS)) / unit - result.error) < tolerance < 0.15 * result.error
    variance = table.variance[range(4), COUNTS].sum() / unit
    assert abs(variance - result.variance) < 4 * result.deviations.std() / np.sqrt(3000)


def test_an_unbiased_mean_has_variance_over_n(lab_config, make_step, make_pool):
    config = lab_config(4, 20, objective__algorithm="reinforce", objective__weighting="reward")
    table = error_table(make_step(config), make_pool(RATES), most=8)
    n = np.arange(1, 9)
    np.testing.assert_allclose(table.variance[:, 1:], table.variance[:, 1:2] / n, rtol=1e-5)
    np.testing.assert_allclose(table.bias[:, 1:], 0, atol=1e-6 * np.abs(table.bias).max())


def test_the_oracle_reaches_one_plus_cv_squared(lab_config, make_step, make_pool):
    """Of a mean over many samples, whose best real counts are n ∝ √a."""
    config = lab_config(4, 2000, objective__algorithm="reinforce", objective__weighting="reward")
    pool = make_pool(RATES, spread=(0.2, 4.0, 1.0, 8.0)).replace(response_lengths=np.full((4, 40), 3, np.int32))
    table = error_table(make_step(config), pool, most=200)
    root = np.sqrt(table.variance[:, 1])
    counts = best_counts(table, tokens=3 * 240, mean_lengths=np.full(4, 3.0), minimum=1)
    assert counts.sum() == 240 and counts.max() < 200
    gain = table.error(np.full(4, 60)) / table.error(counts)
    np.testing.assert_allclose(gain, 1 + np.var(root) / np.mean(root) ** 2, rtol=5e-3)
    assert gain > 1.3


def test_one_sample_is_none_where_a_baseline_is_of_the_others(lab_config, make_step, make_pool):
    """With two samples or more of most prompts: far from there is a minimum in which all but a few are given up."""
    config = lab_config(12, 96, objective__algorithm="rloo", objective__weighting="reward")
    pool = make_pool(np.linspace(0.1, 0.9, 12))
    table, lengths = error_table(make_step(config), pool, most=40), pool.response_lengths.mean(1)
    counts = best_counts(table, 8 * lengths.sum(), lengths, minimum=1)
    assert (counts >= 2).sum() >= 10 and table.error(counts) < table.error(np.full(12, 8))


@pytest.mark.parametrize("seed", range(6))
def test_best_counts_equal_a_search_of_all_counts(seed):
    random = np.random.default_rng(seed)
    n = np.arange(1, 31)
    variance = np.concatenate([np.zeros((3, 1)), random.uniform(0.1, 1, (3, 1)) / n], axis=1)
    lost = random.uniform(0.5, 0.9, (3, 1)) ** np.arange(31)
    directions = random.normal(size=(3, 2, 5)) + 1  # much in common: the biases of prompts add up
    table = ErrorTable(variance, -lost[..., None] * np.array([1.0, 0.0]), np.tensordot(directions, directions, (2, 2)))
    lengths = random.uniform(2, 6, 3)
    found = best_counts(table, tokens=150.0, mean_lengths=lengths, minimum=1)
    assert found @ lengths <= 150 and found.min() >= 1
    every = [np.array(c) for c in itertools.product(range(1, 31), repeat=3) if 130 < np.array(c) @ lengths <= 150]
    # Whole samples do not fit exactly: the program may leave the cost of one of them.
    assert table.error(found) <= 1.03 * min(map(table.error, every))


def test_convex_gains_are_those_of_the_lower_hull():
    random = np.random.default_rng(0)
    values = np.cumsum(random.normal(-0.5, 1.0, (20, 12)), axis=1)
    for row, gains in zip(values, convex_gains(values, minimum=2), strict=True):
        hull = row[2] - np.concatenate([[0], np.cumsum(gains[2:-1])])
        chords = [
            [row[i] + (row[j] - row[i]) * (k - i) / (j - i) for i in range(2, k + 1) for j in range(k, 12) if i < j]
            for k in range(2, 12)
        ]
        lowest = int(np.argmin(row[2:]))
        for k, chord in enumerate(chords[: lowest + 1]):
            np.testing.assert_allclose(hull[k], min([*chord, row[2 + k]]), atol=1e-9)
        assert (gains[:2] == 0).all() and (gains[2 + lowest :] == 0).all()
        assert (np.diff(gains[2:]) <= 1e-12).all()


def test_binomial_odds_of_certain_outcomes():
    odds = oracle._binomial(np.array([0.0, 1.0, 0.5]), 4)
    np.testing.assert_allclose(odds[0, :, 0], 1)
    np.testing.assert_allclose(np.diagonal(odds[1]), 1)
    np.testing.assert_allclose(odds[2, 4], np.array([1, 4, 6, 4, 1]) / 16)
