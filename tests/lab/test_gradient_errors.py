"""Variance, bias and ratios of estimates whose distribution is known."""

import numpy as np
import pytest

from gvm_jax.lab.gradient_errors import measure, ratio
from gvm_jax.lab.simulation import Outcomes

REPETITIONS = 1000


def normal_estimates(bias, scale, seed=0):
    """A pool whose two samples are unit vectors, and coefficients that are estimates of (3, 4) themselves."""
    random = np.random.default_rng(seed)
    coefficients = np.array([3.0, 4.0]) + bias + scale * random.normal(size=(REPETITIONS, 2))
    ones = np.ones((REPETITIONS, 1))
    return Outcomes(coefficients[:, None], 2 * ones, 10 * ones[:, 0], ones > 0, 0.3 * ones)


@pytest.fixture
def pool(make_pool):
    return make_pool([0.5], samples=2, dimensions=2).replace(sketches=np.eye(2, dtype=np.float32)[None])


@pytest.mark.parametrize("bias", [(0.0, 0.0), (0.6, 0.8)])
def test_error_is_variance_and_squared_bias(pool, bias):
    result = measure(pool, normal_estimates(np.array(bias), 0.5), np.array([[3.0, 4.0]]))
    np.testing.assert_allclose(result.variance, 2 * 0.25 / 25, rtol=0.1)
    assert abs(result.squared_bias - np.dot(bias, bias) / 25) < 4 * result.squared_bias_error
    np.testing.assert_allclose(result.error, result.variance + result.squared_bias, rtol=1e-3)
    root, error = result.bias
    if any(bias):
        assert abs(root - 0.2) < 4 * error < 0.05
    else:
        assert root == 0 and 0 < error < 0.05


def test_the_squared_bias_is_unbiased_and_spreads_over_seeds_as_its_standard_error_says(pool):
    for bias in ((0.0, 0.0), (0.6, 0.8)):
        every = (normal_estimates(np.array(bias), 0.5, seed) for seed in range(60))
        results = [measure(pool, estimates, np.array([[3.0, 4.0]])) for estimates in every]
        found = np.array([result.squared_bias for result in results])
        spread = np.std(found, ddof=1)
        assert abs(found.mean() - np.dot(bias, bias) / 25) < 3 * spread / np.sqrt(60)
        np.testing.assert_allclose(np.mean([result.squared_bias_error for result in results]), spread, rtol=0.3)


def test_accept_rates_are_scored_against_the_pool(pool):
    result = measure(pool, normal_estimates(0, 0.5), np.array([[3.0, 4.0]]))
    np.testing.assert_allclose((result.brier, result.brier_constant, result.brier_truth), (0.25 + 0.04, 0.25, 0.25))


def test_the_interval_of_a_ratio_covers_it_as_often_as_it_says():
    random, covered = np.random.default_rng(0), 0
    for _ in range(400):
        common = random.exponential(size=(2, 150))
        above, below = common[0] + common[1], 0.5 * common[0] + 0.2 * random.exponential(size=150)
        _, low, high = ratio(above, below)
        covered += low < 2 / 0.7 < high
    assert 0.92 <= covered / 400 <= 0.98
