import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_jax.allocation.statistics import (
    PromptStatistics,
    Sums,
    age,
    estimate,
    init,
    response_length,
    update,
)

PROMPTS, BATCH = 6, 4
ALL = jnp.arange(PROMPTS)
update_jit = jax.jit(update)


def accept_rate(statistics, ids, strength):
    return estimate(statistics, ids, strength, 1.0).accept_rate


def gradient_norm(statistics, ids, strength):
    return estimate(statistics, ids, 1.0, strength).gradient_norm


def leaves(statistics):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(statistics)]


def same_bits(left, right):
    return all((a.view(np.int32) == b.view(np.int32)).all() for a, b in zip(leaves(left), leaves(right), strict=True))


def observe(statistics, ids, successes, trials, norms=None, decay=0.5, tokens=None, step=0, rejected=None):
    """`update` with `norms` (and `rejected` ones) as one list of measured norms per prompt."""

    def sums(lists, power):
        return [sum(g**power for g in norms) for norms in lists]

    norms, rejected = norms or [[]] * len(ids), rejected or [[]] * len(ids)
    values = [successes, trials, trials if tokens is None else tokens, sums(norms, 1), sums(norms, 2), sums(norms, 0)]
    values += [sums(rejected, 2), sums(rejected, 0)]
    visit = Sums(*(jnp.asarray(value, jnp.float32) for value in values))
    return update(statistics, jnp.asarray(ids, jnp.int32), visit, decay, step)


@st.composite
def visits(draw):
    ids = draw(st.permutations(range(PROMPTS)))[:BATCH]
    trials = [draw(st.integers(0, 9)) for _ in ids]
    successes = [draw(st.integers(0, n)) for n in trials]
    norm = st.floats(-3, 3).map(lambda exponent: 10.0**exponent)
    norms = [draw(st.lists(norm, max_size=n)) for n in successes]
    return ids, successes, trials, norms


class Reference:
    """Every visit kept as it was; the decay is a power of the number of later visits."""

    def __init__(self, decay):
        self.decay, self.history = decay, [[] for _ in range(PROMPTS)]

    def observe(self, ids, successes, trials, norms):
        for i, s, n, g in zip(ids, successes, trials, norms, strict=True):
            if n:
                self.history[i].append((s, n, sum(g), sum(x * x for x in g), len(g)))

    def sums(self, i):
        ages = range(len(self.history[i]) - 1, -1, -1)
        weighted = [self.decay**age * np.asarray(v) for age, v in zip(ages, self.history[i], strict=True)]
        return np.sum(weighted, axis=0) if weighted else np.zeros(5)

    def accept_rates(self, strength):
        """Beta posterior means; the prior's mean is that of the prompts and one of rate 1/2, by precision."""
        sums = np.asarray([self.sums(i) for i in range(PROMPTS)])
        s, n = sums[:, 0], sums[:, 1]
        mean = (np.sum(s / (n + strength)) + 0.5) / (np.sum(n / (n + strength)) + 1)
        return (s + strength * mean) / (n + strength)

    def gradient_norms(self, strength):
        """Normal posterior means of log RMS, observation variance `strength`, prior variance 1."""
        sums = [self.sums(i) for i in range(PROMPTS)]
        seen = {i: (0.5 * np.log(q / k), k) for i, (_, _, _, q, k) in enumerate(sums) if k}
        if not seen:
            return np.ones(PROMPTS)
        logs, counts = np.asarray(list(seen.values())).T
        mean = np.average(logs, weights=1 / (1 + strength / counts))
        posterior = np.full(PROMPTS, mean)
        posterior[list(seen)] = (logs * counts / strength + mean) / (counts / strength + 1)
        return np.exp(posterior)


@settings(max_examples=60, deadline=None)
@given(st.lists(visits(), max_size=6), st.sampled_from([1.0, 0.9, 0.5]), st.sampled_from([0.5, 2.0, 10.0]))
def test_estimates_equal_an_independent_model_over_a_random_history(history, decay, strength):
    statistics, reference = init(PROMPTS), Reference(decay)
    for visit in history:
        statistics = observe(statistics, *visit, decay=decay)
        reference.observe(*visit)
    expected = np.asarray([reference.sums(i) for i in range(PROMPTS)])
    seen = statistics.sums
    sums = (seen.successes, seen.trials, seen.norm_sum, seen.squared_norm_sum, seen.norm_count)
    np.testing.assert_allclose(np.stack(sums, axis=1), expected, rtol=1e-5)
    assert (statistics.last_step >= 0).tolist() == [len(h) > 0 for h in reference.history]
    assert (seen.successes <= seen.trials).all()
    rates = accept_rate(statistics, ALL, strength)
    np.testing.assert_allclose(rates, reference.accept_rates(strength), rtol=1e-5)
    assert (rates > 0).all() and (rates < 1).all()
    np.testing.assert_allclose(gradient_norm(statistics, ALL, strength), reference.gradient_norms(strength), rtol=1e-4)


def test_a_prompt_without_trials_changes_not_a_bit():
    before = observe(init(PROMPTS), [0, 5, 2], [1, 2, 0], [3, 7, 1], [[0.1], [0.3, 5.0], []])
    assert same_bits(before, observe(before, [5, 0], [0, 2], [0, 0], [[1.0], [1.0]]))


def test_a_visit_leaves_other_prompts_alone_and_its_order_does_not_matter():
    before = observe(init(PROMPTS), [0, 1, 2], [1, 2, 3], [3, 7, 4], [[0.1], [0.3], [2.0]])
    forward = observe(before, [1, 4], [2, 0], [4, 5], [[3.0, 1.0], []])
    backward = observe(before, [4, 1], [0, 2], [5, 4], [[], [3.0, 1.0]])
    assert same_bits(forward, backward)
    untouched = np.asarray([0, 2, 3, 5])
    for old, new in zip(leaves(before), leaves(forward), strict=True):
        assert (old[untouched] == new[untouched]).all()
    assert forward.sums.trials.tolist() == [3.0, 7.5, 4.0, 0.0, 5.0, 0.0]


@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_without_data_every_rate_is_a_half_and_every_norm_one(strength):
    assert accept_rate(init(PROMPTS), ALL, strength).tolist() == [0.5] * PROMPTS
    assert gradient_norm(init(PROMPTS), ALL, strength).tolist() == [1.0] * PROMPTS


def test_unseen_prompts_get_the_population():
    statistics = observe(init(PROMPTS), [0, 5], [1, 9], [2, 9], [[2.0], [8.0]])
    for estimator in (accept_rate, gradient_norm):
        low, *unseen, high = estimator(statistics, ALL, 1.0).tolist()
        assert set(unseen) == {unseen[0]} and low < unseen[0] < high


def test_without_a_prior_the_estimates_are_the_observed_ones():
    statistics = observe(init(PROMPTS), [0, 1, 2], [1, 4, 0], [4, 4, 4], [[3.0, 5.0], [2.0], []])
    np.testing.assert_allclose(accept_rate(statistics, ALL, 0.0)[:3], [0.25, 1, 0], rtol=1e-6)
    expected = [17**0.5, 2, (17**0.5 * 2) ** 0.5]  # the third has none: the geometric mean of the two
    np.testing.assert_allclose(gradient_norm(statistics, ALL, 0.0)[:3], expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1.0, 0.0, 3e38, 1e-45])
def test_no_input_makes_an_estimate_that_is_not_finite(bad):
    statistics = observe(init(PROMPTS), [0, 1], [1, 2], [3, 3], [[1.0], [2.0]])
    value, one = jnp.full(2, bad, jnp.float32), jnp.ones(2)
    for name in Sums.__dataclass_fields__:
        visit = Sums(**{other: one for other in Sums.__dataclass_fields__}).replace(**{name: value})
        new = statistics
        for _ in range(3):
            new = update_jit(new, jnp.asarray([0, 3]), visit, 1.0, 0)
        assert all(np.isfinite(leaf).all() for leaf in leaves(new))
        assert (new.sums.successes <= new.sums.trials).all() and (new.sums.successes >= 0).all()
        for strength in (0.0, 2.0):
            estimates = estimate(new, ALL, strength, strength)
            assert all(np.isfinite(leaf).all() for leaf in leaves(estimates))
            assert ((estimates.accept_rate >= 0) & (estimates.accept_rate <= 1)).all()
            assert (estimates.gradient_norm > 0).all() and (estimates.rejected_norm > 0).all()
            assert (estimates.response_tokens >= 1).all() and (estimates.failures >= 0).all()


def test_norms_whose_square_overflows_are_dropped_and_large_ones_kept():
    statistics = observe(init(PROMPTS), [0, 1], [1, 1], [1, 1], [[1e18], [np.inf]])
    np.testing.assert_allclose(gradient_norm(statistics, ALL, 0.0)[:2], [1e18, 1e18], rtol=1e-4)


def test_update_compiles_once_and_may_donate_its_statistics():
    traces = []

    @functools.partial(jax.jit, donate_argnums=0)
    def step(statistics, ids, step):
        traces.append(1)
        return update(statistics, ids, Sums(*[jnp.ones(2)] * 8), 0.9, step)

    statistics = init(PROMPTS)
    for i, ids in enumerate(([0, 1], [2, 4], [5, 0])):
        statistics = step(statistics, jnp.asarray(ids), i)
    assert isinstance(statistics, PromptStatistics) and len(traces) == 1
    assert statistics.last_step.tolist() == [2, 0, 1, -1, 1, 2]
    np.testing.assert_array_equal(age(statistics, jnp.asarray([0, 1, 3]), 4), [2, 4, np.nan])


def test_estimates_hold_the_beta_posterior_and_both_kinds_of_norms():
    statistics = observe(init(PROMPTS), [0, 2], [1, 3], [4, 3], [[2.0], [3.0]], rejected=[[5.0, 7.0], []])
    estimates = estimate(statistics, jnp.asarray([0, 2, 5]), 2.0, 0.0)
    np.testing.assert_allclose(estimates.successes + estimates.failures, [6, 5, 2], rtol=1e-6)
    np.testing.assert_allclose(estimates.successes / (estimates.successes + estimates.failures), estimates.accept_rate)
    np.testing.assert_allclose(estimates.gradient_norm, [2, 3, 6**0.5], rtol=1e-5)
    np.testing.assert_allclose(estimates.rejected_norm, [37**0.5] * 3, rtol=1e-5)  # of one prompt, so of all
    assert estimates.sums.successes.tolist() == [1, 3, 0] and estimates.sums.norm_sum.tolist() == [2, 3, 0]


def test_response_length_is_the_decayed_mean_and_the_others_where_nothing_is_known():
    assert response_length(init(PROMPTS), ALL).tolist() == [0] * len(ALL)
    statistics = observe(init(PROMPTS), [0, 2], [0, 1], [2, 4], decay=0.5, tokens=[20, 100])
    statistics = observe(statistics, [0], [1], [1], decay=0.5, tokens=[40])
    first = (0.5 * 20 + 40) / (0.5 * 2 + 1)
    expected = np.full(PROMPTS, (first + 25) / 2)
    expected[[0, 2]] = first, 25
    np.testing.assert_allclose(response_length(statistics, jnp.arange(PROMPTS)), expected, rtol=1e-6)
