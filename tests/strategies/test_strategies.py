"""Every strategy against its formula, written out in NumPy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gvm_jax.allocation import Constraints, Gvm, GvmRates, Progress, PromptEstimates, Strategy, Sums, Uniform
from gvm_jax.strategies.cero import Cero
from gvm_jax.strategies.cures import Cures
from gvm_jax.strategies.dapo import Dapo
from gvm_jax.strategies.gvm_paper import GvmPaper
from gvm_jax.strategies.knapsack import Knapsack
from gvm_jax.strategies.pods import Pods
from gvm_jax.strategies.reinforce_ada import ReinforceAdaEst, ReinforceAdaSeq
from gvm_jax.strategies.speed_rl import SpeedRl
from gvm_jax.strategies.vip import Vip

M = 12


def make_estimates(
    p, norm=1.0, rejected=1.0, trials=8.0, successes=None, norm_sum=None, norm_count=None
) -> PromptEstimates:
    p, norm, rejected, trials = (np.broadcast_to(np.float32(x), np.shape(p)) for x in (p, norm, rejected, trials))
    successes = p * trials if successes is None else successes
    seen = Sums.zeros(len(p)).replace(
        trials=jnp.asarray(trials), successes=jnp.asarray(successes, jnp.float32),
        norm_sum=jnp.asarray(norm * successes if norm_sum is None else norm_sum, jnp.float32),
        norm_count=jnp.asarray(successes if norm_count is None else norm_count, jnp.float32),
    )  # fmt: skip
    return PromptEstimates(
        accept_rate=jnp.asarray(p), successes=jnp.asarray(p * trials), failures=jnp.asarray((1 - p) * trials),
        gradient_norm=jnp.asarray(norm), rejected_norm=jnp.asarray(rejected), response_tokens=jnp.ones(len(p)),
        sums=seen,
    )  # fmt: skip


def make_constraints(m, budget, minimum=1, maximum=None) -> Constraints:
    full = jnp.full(m, budget if maximum is None else maximum, jnp.int32)
    return Constraints(jnp.int32(budget), jnp.full(m, minimum, jnp.int32), full)


def best(value, m, budget, minimum, maximum):
    """The greedy optimum of Σ value(i, n), each term concave from the minimum on."""
    n = np.full(m, minimum)
    for _ in range(budget - n.sum()):
        marginal_gains = [value(i, n[i] + 1) - value(i, n[i]) if n[i] < maximum else -np.inf for i in range(m)]
        n[int(np.argmax(marginal_gains))] += 1
    return n


def random_estimates(seed):
    rng = np.random.default_rng(seed)
    return make_estimates(
        rng.uniform(0.02, 0.98, M), rng.lognormal(size=M), rng.lognormal(size=M), rng.uniform(2, 40, M)
    )


def weight(p, norm, alpha=1e-3, beta=2.0):
    return norm / np.sqrt(p + alpha / p ** (beta - 1))


# What each strategy maximises, up to a constant; by its paper, in float64.
VALUES = {
    Uniform(): lambda b, i, n: -1 / n,
    Gvm(): lambda b, i, n: -(weight(b.accept_rate[i], b.gradient_norm[i]) ** 2) / n,
    Gvm(0.3, 1.7): lambda b, i, n: -(weight(b.accept_rate[i], b.gradient_norm[i], 0.3, 1.7) ** 2) / n,
    GvmRates(): lambda b, i, n: -(weight(b.accept_rate[i], 1.0) ** 2) / n,
    Cures(): lambda b, i, n: -b.accept_rate[i] * (1 - b.accept_rate[i])
    * ((1 - b.accept_rate[i]) * b.gradient_norm[i] ** 2 + b.accept_rate[i] * b.rejected_norm[i] ** 2) / n,
    ReinforceAdaEst(): lambda b, i, n: -1 / b.accept_rate[i] / n,
    Vip(): lambda b, i, n: -4 * b.accept_rate[i] * (1 - b.accept_rate[i]) / (n - 1),
    Vip("mean"): lambda b, i, n: -4 * b.accept_rate[i] * (1 - b.accept_rate[i]) * (n - 1) / n**2,
    Knapsack(): lambda b, i, n: (1 - b.accept_rate[i] ** n - (1 - b.accept_rate[i]) ** n)
    * b.accept_rate[i] * (1 - b.accept_rate[i]) ** 2,
    Cero(2.0, 6): lambda b, i, n: -np.exp(
        -4 * 2.0 * n / 6 * b.successes[i] * b.failures[i]
        / ((b.successes[i] + b.failures[i]) * (b.successes[i] + b.failures[i] + 1))
    ),
}  # fmt: skip


@pytest.mark.parametrize("strategy", VALUES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_counts_maximise_what_the_paper_maximises(strategy, seed):
    estimates = random_estimates(seed)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), estimates)
    counts = jax.jit(strategy.counts)(estimates, make_constraints(M, 9 * M, minimum=3, maximum=25))
    assert counts.sum() == 9 * M and counts.min() >= 3 and counts.max() <= 25
    found = sum(VALUES[strategy](exact, i, n) for i, n in enumerate(np.asarray(counts)))
    greedy = best(lambda i, n: VALUES[strategy](exact, i, n), M, 9 * M, 3, 25)
    assert found == pytest.approx(sum(VALUES[strategy](exact, i, n) for i, n in enumerate(greedy)), rel=1e-6)


def test_gvm_follows_equation_7_and_proposition_1():
    p, norm, alpha, beta = 0.125, 3.0, 1e-3, 2.0
    (coefficient,) = Gvm(alpha, beta).coefficients(jnp.asarray([p]), jnp.asarray([norm]))
    assert float(coefficient) == pytest.approx(1 / (1 + alpha / p**beta) * norm**2 / p, rel=1e-6)
    assert float(coefficient) == pytest.approx(weight(p, norm) ** 2, rel=1e-6)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("alpha", [0.0, 1e-3])
def test_gvm_is_never_negative_or_not_a_number(alpha, beta):
    p, norm = jnp.asarray([0.0, 0.0, 1e-30, 1.0, 1.0]), jnp.asarray([0.0, 1.0, 1e18, 1e-30, 1e18])
    coefficients = Gvm(alpha, beta).coefficients(p, norm)
    assert (coefficients >= 0).all()  # false for NaN
    if alpha and beta > 1:
        assert coefficients[1] < 1e-30  # the limit of p = 0


def test_gvm_coefficient_is_the_variance_of_the_estimator_of_lemma_1():
    # Accepted gradients of mean 0 and norm G, averaged over n p: here the lemma's bound is the variance.
    rng = np.random.default_rng(0)
    p, norm, n = np.asarray([0.2, 0.5, 0.9]), np.asarray([1.0, 3.0, 0.5]), np.asarray([7, 11, 3])
    accepted = rng.binomial(n, p, size=(200_000, 3))
    signs = 2 * rng.binomial(accepted, 0.5) - accepted  # the sum of as many random signs
    variance = np.var(norm * signs / (n * p), axis=0)
    np.testing.assert_allclose(variance, Gvm(0.0).coefficients(jnp.asarray(p), jnp.asarray(norm)) / n, rtol=0.03)


def paper_counts(norms, rates, budget, alpha, beta, threshold, insufficient):
    """The reference's arithmetic, step by step in float64."""
    weights = [
        0.0 if g == 0 or p == 0 else g / np.sqrt(p + alpha / np.power(p, beta - 1.0))
        for g, p in zip(norms, rates, strict=True)
    ]
    shares = [w / sum(weights) for w in weights]
    if threshold > 0:
        shares = [s if p <= threshold else 0.0 for s, p in zip(shares, rates, strict=True)]
    if insufficient > 0:
        shares = [s if p * s * budget >= insufficient else 0.0 for s, p in zip(shares, rates, strict=True)]
    total = sum(shares)
    scaled = np.array([s / total for s in shares]) * budget
    counts = np.round(scaled).astype(int)
    error = budget - counts.sum()
    residuals = scaled - counts
    for i in np.argsort(-residuals if error > 0 else residuals, kind="stable")[: abs(error)]:
        counts[i] += np.sign(error)
    return counts


@pytest.mark.parametrize("filters", [(0.0, 0.0), (0.9, 0.0), (0.0, 1.5), (0.8, 2.0)])
def test_gvm_paper_is_the_reference_to_the_bit(filters):
    rng = np.random.default_rng(7)
    strategy = GvmPaper(1e-3, 2.0, *filters)
    counts_of = jax.jit(strategy.counts)
    for case in range(200):
        m = 48
        accepted = rng.integers(0, 9, m)
        norm_sums = np.float32(rng.lognormal(size=m)) * accepted if case % 3 else np.float32(accepted)  # ties too
        estimates = make_estimates(
            np.full(m, 0.5), trials=8.0, successes=accepted, norm_sum=norm_sums, norm_count=accepted
        )
        rates = accepted / 8
        norms = [float(s) / k if k else 0.0 for s, k in zip(np.float32(norm_sums), accepted, strict=True)]
        expected = paper_counts(norms, rates, 8 * m, 1e-3, 2.0, *filters)
        counts = counts_of(estimates, make_constraints(m, 8 * m))
        assert counts.dtype == jnp.int32 and counts.tolist() == expected.tolist(), case


def test_gvm_paper_without_any_accepted_sample_counts_equally():
    estimates = make_estimates(np.zeros(3), successes=np.zeros(3))
    assert GvmPaper().counts(estimates, make_constraints(3, 9)).tolist() == [3, 3, 3]


def test_knapsack_gives_leftovers_to_unsolved_prompts_and_takes_new_ones_for_even():
    estimates = make_estimates(np.asarray([0.5, 0.5, 0.5, 0.5]), trials=[8, 8, 8, 0], successes=[4, 0, 8, 0])
    counts = Knapsack().counts(estimates, make_constraints(4, 40, minimum=2, maximum=10))
    assert counts.sum() <= 40 and counts[0] == 10 and counts[3] == 10
    assert counts[1] == 10 and counts[2] == 10  # all are at their cap
    counts = Knapsack().counts(estimates, make_constraints(4, 30, minimum=2, maximum=10))
    assert counts.tolist() == [10, 8, 2, 10]


def drive(strategy: Strategy, outcomes, budget):
    """Runs the rounds on a table of outcomes [m, n]; returns the trials after each round."""
    m = len(outcomes)
    constraints = make_constraints(m, budget)
    counts = np.asarray(strategy.counts(make_estimates(np.full(m, 0.5)), constraints))
    trials, history = np.zeros(m, int), []
    while counts.any():
        trials = trials + counts
        assert trials.sum() <= budget
        history.append(trials.tolist())
        successes = np.asarray([row[:n].sum() for row, n in zip(outcomes, trials, strict=True)])
        progress = Progress(jnp.asarray(successes), jnp.asarray(trials), jnp.int32(len(history)))
        left = constraints.replace(budget=jnp.int32(budget - trials.sum()))
        counts = np.asarray(strategy.more(progress, left))
    return history


OUTCOMES = np.asarray([[1, 0, 1, 0] * 8, [0] * 32, [1] * 32, [0, 0, 0, 0, 1, 1, 0, 1] * 4], int)


def test_reinforce_ada_samples_until_enough_of_both_are_in():
    strategy = ReinforceAdaSeq(round_size=4, max_rounds=3, accepted_wanted=2, rejected_wanted=2)
    assert drive(strategy, OUTCOMES, 64) == [[4, 4, 4, 4], [4, 8, 8, 8], [4, 12, 12, 8]]
    assert drive(dataclasses.replace(strategy, rejected_wanted=0), OUTCOMES, 64)[-1] == [4, 12, 4, 8]
    assert drive(strategy, OUTCOMES, 21) == [[4, 4, 4, 4], [4, 6, 6, 5]]  # the budget ends it, shared level


def test_dapo_replaces_groups_without_both_outcomes():
    strategy = Dapo(group_size=4, groups=2)
    assert drive(strategy, OUTCOMES, 64) == [[4, 4, 0, 0], [4, 4, 4, 0], [4, 4, 4, 4]]
    assert drive(strategy, OUTCOMES, 11) == [[4, 4, 0, 0]]  # whole groups only
    assert drive(Dapo(group_size=8), OUTCOMES, 64)[-1] == [8, 8, 8, 8]


def test_speed_rl_goes_on_with_prompts_of_middling_difficulty():
    strategy = SpeedRl(screen_samples=4, group_size=8)
    assert drive(strategy, OUTCOMES, 64) == [[4, 4, 4, 4], [12, 4, 4, 4]]
    assert drive(SpeedRl(screen_samples=5, group_size=8), OUTCOMES, 64) == [[5, 5, 5, 5], [13, 5, 5, 13]]
    assert drive(SpeedRl(screen_samples=5, group_size=8), OUTCOMES, 30) == [[5, 5, 5, 5], [13, 5, 5, 5]]


REWARDS = jnp.asarray([1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1], jnp.float32)
SEGMENTS = jnp.asarray([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3], jnp.int32)  # 3 marks rows without a sample


def test_what_is_trained_on():
    every = Uniform().kept(REWARDS, SEGMENTS, 3)
    assert every.tolist() == [True] * 10 + [False] * 2
    mixed = Dapo().kept(REWARDS, SEGMENTS, 3)
    assert mixed.tolist() == [True] * 4 + [False] * 8
    continued = SpeedRl(screen_samples=3).kept(REWARDS, SEGMENTS, 3)
    assert continued.tolist() == [True] * 4 + [False] * 8
    halves = ReinforceAdaSeq(group_size=2).kept(REWARDS, SEGMENTS, 3)
    assert halves.tolist() == [True, True, False, False] + [True, True, False] + [True, True, False] + [False] * 2


@pytest.mark.parametrize("seed", range(4))
def test_pods_keeps_the_subset_of_largest_variance(seed):
    rng = np.random.default_rng(seed)
    sizes = [6, 3, 5]
    segments = np.repeat([0, 1, 2], sizes)
    order = rng.permutation(len(segments))
    rewards = rng.normal(size=len(segments)) if seed % 2 else rng.integers(0, 2, len(segments)).astype(float)
    rewards, segments = np.float32(rewards[order]), segments[order]
    kept = np.asarray(Pods(group_size=4).kept(jnp.asarray(rewards), jnp.asarray(segments), 3))
    for i, size in enumerate(sizes):
        mine, chosen = rewards[segments == i], kept[segments == i]
        assert chosen.sum() == min(size, 4)
        largest = max(np.var(subset) for subset in itertools.combinations(mine, min(size, 4)))
        assert np.var(mine[chosen]) == pytest.approx(largest, rel=1e-4)
