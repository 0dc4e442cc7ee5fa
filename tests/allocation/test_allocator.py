import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gvm_jax.allocation
from gvm_jax.allocation import Allocator, Progress, Sums
from gvm_jax.allocation.statistics import init, update
from gvm_jax.allocation.strategies import Dapo, Gvm, Uniform
from gvm_jax.config import get_config

PROMPTS = 64
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
    return p, G, update(init(PROMPTS), jnp.arange(PROMPTS), visit, 0.9, 0)


@functools.partial(jax.jit, static_argnums=0)
def next_counts(allocator, statistics, prompt_ids, valid, budget):
    return allocator.next_counts(statistics, prompt_ids, valid, budget)


def test_default_config_makes_the_allocator_it_describes():
    built = Allocator.from_config(get_config().allocation)
    assert built == allocator(Gvm(1e-3, 2.0))
    assert hash(built) == hash(Allocator.from_config(get_config().allocation))


def test_counts_follow_the_weight_and_reach_the_ideal_variance_ratio(population):
    p, G, statistics = population
    weight = G / np.sqrt(p)
    counts, info = next_counts(
        allocator(Gvm(alpha=0.0)), statistics, jnp.arange(PROMPTS), jnp.ones(PROMPTS, bool), 10**5
    )
    np.testing.assert_allclose(counts, 10**5 * weight / weight.sum(), rtol=5e-3)
    np.testing.assert_allclose(info.accept_rate, p, rtol=1e-3)
    np.testing.assert_allclose(info.gradient_norm, G, rtol=1e-3)
    ideal = 1 + (weight.std() / weight.mean()) ** 2
    assert float(info.ideal_variance_ratio) == pytest.approx(ideal, rel=1e-3)
    assert float(info.variance_ratio) == pytest.approx(ideal, rel=1e-3)


def test_equal_counts_report_what_an_allocation_would_gain(population):
    *_, statistics = population
    counts, info = next_counts(
        allocator(Uniform()), statistics, jnp.arange(PROMPTS), jnp.ones(PROMPTS, bool), 8 * PROMPTS
    )
    assert counts.tolist() == [8] * PROMPTS
    assert float(info.variance_ratio) == pytest.approx(1, rel=1e-5) and info.ideal_variance_ratio > 1.5


def test_padding_gets_no_samples_and_does_not_show_in_the_info(population):
    *_, statistics = population
    ids = jnp.asarray([3, 9, 27, 40, 41])
    counts, info = next_counts(allocator(Gvm()), statistics, ids, jnp.ones(5, bool), 50)
    padded_ids, valid = (
        jnp.asarray([3, -1, 9, 27, PROMPTS, 40, 41, 0]),
        jnp.asarray([1, 0, 1, 1, 0, 1, 1, 0], bool),
    )
    padded, padded_info = next_counts(allocator(Gvm()), statistics, padded_ids, valid, 50)
    assert padded[valid].tolist() == counts.tolist() and padded.sum() == 50
    assert float(padded_info.variance_ratio) == pytest.approx(float(info.variance_ratio), rel=1e-5)
    assert float(padded_info.ideal_variance_ratio) == pytest.approx(float(info.ideal_variance_ratio), rel=1e-5)


def test_floor_and_cap_hold(population):
    *_, statistics = population
    bounded = allocator(Gvm(), min_samples=2, max_samples=12)
    counts, info = next_counts(bounded, statistics, jnp.arange(PROMPTS), jnp.ones(PROMPTS, bool), 8 * PROMPTS)
    assert counts.sum() == 8 * PROMPTS and counts.min() == 2 and counts.max() == 12
    assert 1 < info.variance_ratio < info.ideal_variance_ratio


def test_samples_that_cost_tokens_go_to_short_answers(population):
    p, G, statistics = population
    ids, valid = jnp.arange(PROMPTS), jnp.ones(PROMPTS, bool)
    counts, _ = next_counts(allocator(Gvm(alpha=0.0), cost="tokens"), statistics, ids, valid, 10**5)
    share = G / np.sqrt(p * LENGTHS)  # of min Σ G²/(p n) at a given Σ length · n
    np.testing.assert_allclose(counts, 10**5 * share / share.sum(), rtol=5e-3)


def test_prompts_are_drawn_from_a_pool_by_their_accept_rate(population):
    p, _, statistics = population
    chooser = allocator(Uniform(), prompt_temperature=0.05)
    ids = jnp.arange(PROMPTS)
    assert chooser.choose_prompts(statistics, ids[:5], 5, jax.random.key(0)).tolist() == list(range(5))
    draw = jax.jit(lambda key: chooser.choose_prompts(statistics, ids, 1, key)[0])
    drawn = np.bincount(jax.vmap(draw)(jax.random.split(jax.random.key(0), 20_000)), minlength=PROMPTS) / 20_000
    expected = np.exp(np.sqrt(p * (1 - p)) / 0.05)
    np.testing.assert_allclose(drawn, expected / expected.sum(), atol=4e-3)
    several = chooser.choose_prompts(statistics, ids, 20, jax.random.key(1))
    assert len(set(several.tolist())) == 20 and several.tolist() == sorted(several.tolist())


def test_rounds_are_asked_for_within_the_bounds():
    dapo = allocator(Dapo(group_size=4, groups=2))
    counts, _ = next_counts(dapo, init(PROMPTS), jnp.arange(6), jnp.asarray([1, 1, 1, 0, 1, 1], bool), 16)
    assert counts.tolist() == [4, 4, 0, 0, 0, 0]
    progress = Progress(jnp.asarray([4, 1, 0, 0, 0, 0]), counts, jnp.int32(1))
    assert dapo.more_counts(progress, jnp.asarray([1, 1, 0, 0, 1, 1], bool), 8).tolist() == [0, 0, 0, 0, 4, 0]


def test_before_any_data_counts_are_equal():
    ids, valid = jnp.arange(8), jnp.ones(8, bool)
    counts, info = next_counts(allocator(Gvm()), init(PROMPTS), ids, valid, 32)
    assert counts.tolist() == [4] * 8 and float(info.variance_ratio) == pytest.approx(1)


def test_new_statistics_and_budgets_do_not_compile_again(population):
    *_, statistics = population
    traces = []

    @jax.jit
    def step(statistics, budget):
        traces.append(1)
        return allocator(Gvm()).next_counts(statistics, jnp.arange(8), jnp.ones(8, bool), budget)[0]

    assert [int(step(s, b).sum()) for s, b in [(statistics, 64), (init(PROMPTS), 64), (statistics, 100)]] == [
        64,
        64,
        100,
    ]
    assert len(traces) == 1


def test_the_example_of_the_readme_works():
    page = (Path(gvm_jax.allocation.__file__).parent / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names, before = {}, set(gvm_jax.allocation.STRATEGIES)
    try:
        exec(example, names)
    finally:
        added = set(gvm_jax.allocation.STRATEGIES) - before
        for name in added:
            del gvm_jax.allocation.STRATEGIES[name]
    assert len(added) == 1
    counts = names["counts"]
    assert counts.sum() == 32 and counts[0] > counts[1]
