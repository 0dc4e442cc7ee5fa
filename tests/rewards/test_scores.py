"""The scores of k samples against their definitions, enumerated."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_jax.rewards.scores import NO_GROUP, bootstrap_interval, group_answers, ks, majority, pass_at_k

grades = st.lists(st.booleans(), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(grades, st.data())
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples_with_a_correct_one(correct, data):
    k = data.draw(st.integers(1, len(correct)))
    choices = list(itertools.combinations(correct, k))
    expected = sum(map(any, choices)) / len(choices)
    (found,) = pass_at_k(np.array([sum(correct)]), len(correct), k)
    assert found == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.data())
def test_pass_at_k_grows_with_k_from_the_mean_to_any(samples, data):
    correct = np.arange(samples + 1)
    k = data.draw(st.integers(1, samples))
    values = pass_at_k(correct, samples, k)
    assert (np.diff(values) >= 0).all() and values[0] == 0 and values[-1] == 1
    np.testing.assert_allclose(pass_at_k(correct, samples, 1), correct / samples, atol=1e-12)
    np.testing.assert_array_equal(pass_at_k(correct, samples, samples), correct > 0)
    if k < samples:
        assert (pass_at_k(correct, samples, k + 1) >= values).all()


def test_pass_at_k_is_unbiased():
    # E[estimate] over c ~ Binomial(n, p) is 1 - (1-p)^k, whatever n.
    n, k, p = 9, 4, 0.3
    chances = scipy.stats.binom.pmf(np.arange(n + 1), n, p)
    assert chances @ pass_at_k(np.arange(n + 1), n, k) == pytest.approx(1 - (1 - p) ** k)


def test_pass_at_k_wants_k_samples():
    with pytest.raises(ValueError, match="k must be from 1 to 4"):
        pass_at_k(np.array([1]), 4, 5)


@pytest.mark.parametrize(("samples", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_the_ks_double(samples, expected):
    assert ks(samples) == expected


def value(text):
    """What the texts of these tests mean."""
    return Fraction(text)


texts = st.sampled_from(["1", "2/2", "1.0", "0.5", "1/2", "3", "6/2", None, ""])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(texts, max_size=8), max_size=4))
def test_answers_are_in_one_group_exactly_if_they_mean_the_same(answers):
    groups = group_answers(answers, lambda pairs: [value(a) == value(b) for a, b in pairs])
    for of_question, found in zip(answers, groups, strict=True):
        assert len(of_question) == len(found)
        for (a, i), (b, j) in itertools.product(zip(of_question, found, strict=True), repeat=2):
            assert (i == NO_GROUP) == (not a)
            assert not (a and b) or (i == j) == (value(a) == value(b))


def test_equivalence_that_is_not_transitive_goes_by_the_first_answer():
    near = lambda pairs: [abs(float(a) - float(b)) <= 1 for a, b in pairs]  # noqa: E731
    (groups,) = group_answers([["2", "1", "3", "4", "5"]], near)
    assert groups.tolist() == [0, 0, 0, 1, 1]
    (groups,) = group_answers([["1", "2", "3"]], near)
    assert groups.tolist() == [0, 0, 1]


def drawn_majority(correct, groups):
    """The mean over all ways to break a tie and then to pick a member of the winner."""
    voters = [group for group in groups if group != NO_GROUP]
    if not voters:
        return 0.0
    most = max(map(voters.count, voters))
    winners = [group for group in set(voters) if voters.count(group) == most]
    picks = [[c for c, g in zip(correct, groups, strict=True) if g == group] for group in winners]
    return sum(sum(pick) / len(pick) for pick in picks) / len(picks)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(NO_GROUP, 3)), min_size=1, max_size=9), st.randoms())
def test_the_majority_is_the_largest_group_and_ties_are_shared(samples, random):
    def maj(samples):
        correct, groups = map(np.array, zip(*samples, strict=True))
        return majority(correct, groups)

    correct, groups = zip(*samples, strict=True)
    assert maj(samples) == pytest.approx(drawn_majority(correct, groups))
    shuffled = samples.copy()
    random.shuffle(shuffled)
    assert maj(shuffled) == pytest.approx(maj(samples))


def test_the_majority_of_known_cases():
    assert majority(np.array([True, True, False]), np.array([0, 0, 1])) == 1
    assert majority(np.array([True, False, False]), np.array([0, 1, 1])) == 0
    assert majority(np.array([True, False]), np.array([0, 1])) == 0.5
    assert majority(np.array([True, False, False]), np.array([0, NO_GROUP, NO_GROUP])) == 1


def test_the_interval_of_a_share_is_the_binomials():
    # The resampled mean of q zeros and ones is Binomial(q, p) / q.
    scores = np.zeros((60, 2))
    scores[:18, 0] = scores[:45, 1] = 1
    low, high = bootstrap_interval(scores, seed=3)
    for column, p in enumerate((0.3, 0.75)):
        ends = scipy.stats.binom.ppf([0.025, 0.975], 60, p) / 60
        np.testing.assert_allclose([low[column], high[column]], ends, atol=1.01 / 60)


def test_intervals_are_the_same_for_a_seed_and_mirrored_for_mirrored_scores():
    scores = np.random.default_rng(0).random((20, 1))
    low, high = bootstrap_interval(np.hstack([scores, 1 - scores]), seed=1)
    np.testing.assert_allclose(low, 1 - high[::-1])
    np.testing.assert_allclose(bootstrap_interval(scores, seed=1)[0], low[:1])
    assert low[0] < scores.mean() < high[0]
    assert (bootstrap_interval(np.ones((1, 1)), seed=0) == 1).all()
