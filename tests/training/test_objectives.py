"""Advantages, weights and token terms against formulas written out in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from gvm_jax.training.objectives import Objective, SampleTerms, group_advantages, kl_estimate

REWARDS = np.array([1, 0, 0, 1, 1, 1, 0, 0, 1], np.float32)
SEGMENTS = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4], np.int32)  # mixed, all right, a single, all wrong, a single
RNG = np.random.default_rng(0)


def objective(algorithm="raft_pp", weighting="log_likelihood", **changes):
    settings = dict(clip_low=0.2, clip_high=0.28, kl_coefficient=0.0, kl_estimator="k3") | changes
    return Objective(algorithm=algorithm, weighting=weighting, **settings)


def test_group_advantages_are_grpos():
    expected = np.zeros(9)
    group = REWARDS[:3]
    expected[:3] = (group - group.mean()) / (group.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(group_advantages(REWARDS, SEGMENTS, 5), expected, atol=1e-6)


def test_groups_are_ids_not_positions():
    order = RNG.permutation(9)
    whole = objective("grpo", "reward").sample_terms(REWARDS, SEGMENTS, 5, np.ones(9, np.float32))
    parts = objective("grpo", "reward").sample_terms(REWARDS[order], SEGMENTS[order], 5, np.ones(9, np.float32))
    np.testing.assert_allclose(whole.advantage[order], parts.advantage, atol=1e-6)
    np.testing.assert_allclose(whole.weight[order], parts.weight)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("log_likelihood", [1, 0, 0, 1 / 2, 1 / 2, 1, 0, 0, 1]),
        ("reward", [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 1, 1 / 2, 1 / 2, 1]),
        ("token_mean", np.ones(9)),
    ],
)
def test_weights_state_the_objective(weighting, expected):
    mix = np.linspace(0.1, 0.9, 9).astype(np.float32)
    terms = objective("raft", weighting).sample_terms(REWARDS, SEGMENTS, 5, mix)
    np.testing.assert_allclose(terms.weight, mix * expected, rtol=1e-6)
    np.testing.assert_allclose(terms.advantage, REWARDS)
    per_sample = np.ones(9) if weighting == "token_mean" else [1 / 3] * 3 + [1 / 2] * 2 + [1] + [1 / 2] * 2 + [1]
    np.testing.assert_allclose(terms.kl_weight, mix * per_sample, rtol=1e-6)


def batch(rows=6, length=5):
    logprobs = -RNG.exponential(size=(rows, length)).astype(np.float32)
    behaviour = logprobs + RNG.normal(size=(rows, length)).astype(np.float32) * 0.4
    reference = logprobs + RNG.normal(size=(rows, length)).astype(np.float32)
    lengths = RNG.integers(1, length + 1, rows).astype(np.int32)
    terms = SampleTerms(*(RNG.normal(size=rows).astype(np.float32) for _ in range(3)))
    return logprobs, behaviour, reference, lengths, terms


def written_out(o, logprobs, behaviour, reference, lengths, terms):
    total = 0.0
    for j in range(len(lengths)):
        for t in range(lengths[j]):
            ratio, a = np.exp(np.float64(logprobs[j, t]) - behaviour[j, t]), terms.advantage[j]
            clipped = min(max(ratio, 1 - o.clip_low), 1 + o.clip_high)
            gain = logprobs[j, t] * a if o.algorithm == "raft" else min(ratio * a, clipped * a)
            d = np.float64(reference[j, t]) - logprobs[j, t]
            kl = {"k1": -d, "k2": d * d / 2, "k3": np.exp(d) - d - 1}[o.kl_estimator]
            total += -terms.weight[j] * gain + o.kl_coefficient * terms.kl_weight[j] * kl
    return total


@pytest.mark.parametrize("algorithm", ["raft", "raft_pp", "grpo"])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_loss_is_the_formula_written_out(algorithm, kl):
    o = objective(algorithm, "reward", kl_coefficient=0.3, kl_estimator=kl)
    logprobs, behaviour, reference, lengths, terms = batch()
    sums = o.loss_sums(logprobs, behaviour, reference, terms, lengths, jnp.ones(()))
    np.testing.assert_allclose(sums.loss, written_out(o, logprobs, behaviour, reference, lengths, terms), rtol=1e-4)
    assert sums.tokens == lengths.sum()


def test_sums_and_denominators_add_up_over_micro_batches():
    for weighting, expected in (("reward", 6 * 0.25 * 5), ("token_mean", None)):
        o = objective("grpo", weighting)
        logprobs, behaviour, _, lengths, terms = batch()
        parts = []
        for rows in (slice(0, 6), slice(0, 2), slice(2, 6)):
            some = SampleTerms(terms.advantage[rows], terms.weight[rows], terms.kl_weight[rows])
            denominator = o.denominator(some, lengths[rows], 5, prompts_per_sample=0.25)
            parts.append(o.loss_sums(logprobs[rows], behaviour[rows], None, some, lengths[rows], denominator))
        whole, first, second = parts
        np.testing.assert_allclose(whole.loss, first.loss + second.loss, rtol=1e-5)
        np.testing.assert_allclose(whole.denominator, first.denominator + second.denominator)
        np.testing.assert_allclose(
            whole.denominator, (terms.kl_weight * lengths).sum() if expected is None else expected, rtol=1e-5
        )


def test_samples_without_a_gradient_are_known():
    terms = SampleTerms(jnp.array([1.0, 0.0, 1.0]), jnp.array([0.5, 0.5, 0.0]), jnp.ones(3))
    np.testing.assert_array_equal(objective().has_gradient(terms), [True, False, False])
    np.testing.assert_array_equal(objective(kl_coefficient=0.1).has_gradient(terms), [True, True, True])


def test_kl_estimates_in_expectation():
    """Under samples of π, k1 and k3 have the KL as their mean; k2 is near it for near policies."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.45, 0.35, 0.2])
    kl = (p * np.log(p / q)).sum()
    for name, tolerance in (("k1", 1e-6), ("k3", 1e-6), ("k2", 1e-3)):
        estimate = (p * np.asarray(kl_estimate(np.log(p), np.log(q), name))).sum()
        assert abs(estimate - kl) < tolerance
