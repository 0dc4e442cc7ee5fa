import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gvm_jax.allocation import Allocator, Gvm, Progress, Sums, Uniform
from gvm_jax.allocation.statistics import init, update
from gvm_jax.config import get_config
from gvm_jax.strategies.dapo import Dapo

PROMPTS = 64
ALL = jnp.arange(PROMPTS)
LENGTHS = np.linspace(20, 200, PROMPTS)  # mean tokens of a response


def allocator(strategy, **settings):
    defaults = dict(
        min_samples=1, max_samples=0, cost="samples", prompt_temperature=0.1,
        accept_rate_prior=2.0, gradient_norm_prior=2.0, decay=0.9,
    )  # fmt: skip
    return Allocator(strategy, **(defaults | settings))


@pytest.fixture(scope="module")
def population():
    """Accept rates, norms, and statistics that know them almost exactly."""
    rng = np.random.default_rng(0)
    p, G = rng.uniform(0.1, 0.95, PROMPTS), rng.lognormal(0, 0.8, PROMPTS)
    trials = np.full(PROMPTS, 1e6)
    visit = dict(successes=p * trials, trials=trials, response_tokens=LENGTHS * trials, norm_count=p * trials)
    visit |= dict(norm_sum=G * p * trials, squared_norm_sum=G**2 * p * trials)
    visit = Sums.zeros(PROMPTS).replace(**{name: jnp.asarray(value, jnp.float32) for name, value in visit.items()})
    return p, G, update(init(PROMPTS), ALL, visit, 0.9, 0)


@functools.partial(jax.jit, static_argnums=0)
def next_counts(allocator, statistics, prompt_ids, budget):
    return allocator.next_counts(statistics, prompt_ids, budget)


def test_default_config_makes_the_allocator_it_describes():
    built = Allocator.from_config(get_config().allocation)
    assert built == allocator(Gvm(1e-3, 2.0))
    assert hash(built) == hash(Allocator.from_config(get_config().allocation))


def test_counts_follow_the_weight_and_reach_the_ideal_variance_ratio(population):
    p, G, statistics = population
    weight = G / np.sqrt(p)
    counts, info = next_counts(allocator(Gvm(alpha=0.0)), statistics, ALL, 10**5)
    np.testing.assert_allclose(counts, 10**5 * weight / weight.sum(), rtol=5e-3)
    np.testing.assert_allclose(info.accept_rate, p, rtol=1e-3)
    np.testing.assert_allclose(info.gradient_norm, G, rtol=1e-3)
    ideal = 1 + (weight.std() / weight.mean()) ** 2
    assert float(info.ideal_variance_ratio) == pytest.approx(ideal, rel=1e-3)
    assert float(info.variance_ratio) == pytest.approx(ideal, rel=1e-3)


def test_equal_counts_report_what_an_allocation_would_gain(population):
    *_, statistics = population
    counts, info = next_counts(allocator(Uniform()), statistics, ALL, 8 * PROMPTS)
    assert counts.tolist() == [8] * PROMPTS
    assert float(info.variance_ratio) == pytest.approx(1, rel=1e-5) and info.ideal_variance_ratio > 1.5


def test_floor_and_cap_hold(population):
    *_, statistics = population
    counts, info = next_counts(allocator(Gvm(), min_samples=2, max_samples=12), statistics, ALL, 8 * PROMPTS)
    assert counts.sum() == 8 * PROMPTS and counts.min() == 2 and counts.max() == 12
    assert 1 < info.variance_ratio < info.ideal_variance_ratio


def test_samples_that_cost_tokens_go_to_short_answers(population):
    p, G, statistics = population
    counts, _ = next_counts(allocator(Gvm(alpha=0.0), cost="tokens"), statistics, ALL, 10**5)
    share = G / np.sqrt(p * LENGTHS)  # of min Σ G²/(p n) at a given Σ length · n
    np.testing.assert_allclose(counts, 10**5 * share / share.sum(), rtol=5e-3)


def test_prompts_are_drawn_from_a_pool_by_their_accept_rate(population):
    p, _, statistics = population
    chooser = allocator(Uniform(), prompt_temperature=0.05)
    assert chooser.choose_prompts(statistics, ALL[:5], 5, jax.random.key(0)).tolist() == list(range(5))
    draw = jax.jit(lambda key: chooser.choose_prompts(statistics, ALL, 1, key)[0])
    drawn = np.bincount(jax.vmap(draw)(jax.random.split(jax.random.key(0), 20_000)), minlength=PROMPTS) / 20_000
    expected = np.exp(np.sqrt(p * (1 - p)) / 0.05)
    np.testing.assert_allclose(drawn, expected / expected.sum(), atol=4e-3)
    several = chooser.choose_prompts(statistics, ALL, 20, jax.random.key(1))
    assert len(set(several.tolist())) == 20 and several.tolist() == sorted(several.tolist())


def test_rounds_are_asked_for_within_the_bounds():
    dapo = allocator(Dapo(group_size=4, groups=2))
    counts, _ = next_counts(dapo, init(PROMPTS), jnp.arange(6), 16)
    assert counts.tolist() == [4, 4, 0, 0, 0, 0]
    progress = Progress(jnp.asarray([4, 1, 0, 0, 0, 0]), counts, jnp.int32(1))
    assert dapo.more_counts(progress, 8).tolist() == [0, 0, 4, 0, 0, 0]


def test_before_any_data_counts_are_equal():
    counts, info = next_counts(allocator(Gvm()), init(PROMPTS), jnp.arange(8), 32)
    assert counts.tolist() == [4] * 8 and float(info.variance_ratio) == pytest.approx(1)


def test_new_statistics_and_budgets_do_not_compile_again(population, compilations):
    arguments = [(population[2], 64), (init(PROMPTS), 64), (init(PROMPTS), 100)]
    next_counts(allocator(Gvm()), init(PROMPTS), ALL, 32)
    before = len(compilations)
    assert [np.asarray(next_counts(allocator(Gvm()), s, ALL, b)[0]).sum() for s, b in arguments] == [64, 64, 100]
    assert len(compilations) == before
