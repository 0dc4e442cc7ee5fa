import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from gvm_jax.allocation import STRATEGIES, Gvm, Uniform, allocate, make_strategy


def test_gvm_counts_are_proportional_to_the_weight_of_proposition_1():
    rng = np.random.default_rng(0)
    p, G = rng.uniform(0.05, 1, 32), rng.lognormal(size=32)
    alpha, beta = 0.3, 1.7
    weight = G / np.sqrt(p + alpha / p ** (beta - 1))
    coefficients = Gvm(alpha, beta).coefficients(jnp.asarray(p), jnp.asarray(G))
    np.testing.assert_allclose(np.sqrt(coefficients), weight, rtol=1e-5)
    counts = allocate(coefficients, 1_000_000, 0, 1_000_000)
    np.testing.assert_allclose(counts, 1_000_000 * weight / weight.sum(), rtol=1e-3)


def test_gvm_follows_equation_7():
    p, G, alpha, beta = 0.125, 3.0, 1e-3, 2.0
    expected = 1 / (1 + alpha / p**beta) * G**2 / p
    (coefficient,) = Gvm(alpha, beta).coefficients(jnp.asarray([p]), jnp.asarray([G]))
    assert float(coefficient) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("alpha", [0.0, 1e-3])
def test_gvm_is_never_negative_or_not_a_number(alpha, beta):
    p, G = jnp.asarray([0.0, 0.0, 1e-30, 1.0, 1.0]), jnp.asarray([0.0, 1.0, 1e18, 1e-30, 1e18])
    coefficients = Gvm(alpha, beta).coefficients(p, G)
    assert (coefficients >= 0).all()  # false for NaN
    if alpha and beta > 1:
        assert coefficients[1] < 1e-30  # the limit of p = 0


def test_coefficient_is_the_variance_of_the_estimator_of_lemma_1():
    # Accepted gradients of mean 0 and norm G, averaged over n p: here the lemma's bound is the variance.
    rng = np.random.default_rng(0)
    p, G, n = np.asarray([0.2, 0.5, 0.9]), np.asarray([1.0, 3.0, 0.5]), np.asarray([7, 11, 3])
    accepted = rng.binomial(n, p, size=(200_000, 3))
    signs = 2 * rng.binomial(accepted, 0.5) - accepted  # the sum of as many random signs
    variance = np.var(G * signs / (n * p), axis=0)
    coefficients = Gvm(alpha=0.0).coefficients(jnp.asarray(p), jnp.asarray(G))
    np.testing.assert_allclose(variance, coefficients / n, rtol=0.03)


def test_uniform_ignores_the_estimates():
    assert Uniform().coefficients(jnp.asarray([0.1, 0.9]), jnp.asarray([5.0, 0.0])).tolist() == [1, 1]


def test_the_registry_builds_each_strategy_from_the_fields_of_the_config():
    config = ConfigDict({"strategy": "gvm", "alpha": 0.5, "beta": 3.0, "decay": 0.9})
    assert make_strategy(config) == Gvm(0.5, 3.0)
    config.strategy = "uniform"
    assert make_strategy(config) == Uniform()
    config.strategy = "gmv"
    with pytest.raises(ValueError, match=r"config.allocation.strategy = 'gmv' is unknown; use one of gvm, uniform"):
        make_strategy(config)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_is_a_static_argument(name):
    strategy = STRATEGIES[name]()
    assert dataclasses.is_dataclass(strategy) and hash(strategy) == hash(STRATEGIES[name]())
