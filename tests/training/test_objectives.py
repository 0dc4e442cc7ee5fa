"""Advantages, weights and token terms against formulas written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
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


def written_out(o, logprobs, behaviour, old, reference, lengths, terms):
    total = 0.0
    for j in range(len(lengths)):
        for t in range(lengths[j]):
            correction = 1.0
            if o.importance_cap is not None:
                correction = min(np.exp(np.float64(old[j, t]) - behaviour[j, t]), o.importance_cap)
            ratio, a = np.exp(np.float64(logprobs[j, t]) - old[j, t]), terms.advantage[j]
            clipped = min(max(ratio, 1 - o.clip_low), 1 + o.clip_high)
            gain = logprobs[j, t] * a if o.algorithm == "raft" else min(ratio * a, clipped * a)
            d = np.float64(reference[j, t]) - logprobs[j, t]
            kl = {"k1": -d, "k2": d * d / 2, "k3": np.exp(d) - d - 1}[o.kl_estimator]
            total += correction * (-terms.weight[j] * gain + o.kl_coefficient * terms.kl_weight[j] * kl)
    return total


@pytest.mark.parametrize("algorithm", ["raft", "raft_pp", "grpo"])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_loss_is_the_formula_written_out(algorithm, kl):
    o = objective(algorithm, "reward", kl_coefficient=0.3, kl_estimator=kl)
    logprobs, behaviour, reference, lengths, terms = batch()
    sums = o.loss_sums(logprobs, behaviour, None, reference, terms, lengths, jnp.ones(()))
    expected = written_out(o, logprobs, behaviour, behaviour, reference, lengths, terms)
    np.testing.assert_allclose(sums.loss, expected, rtol=1e-4)
    assert sums.tokens == lengths.sum() and sums.truncated_weights == 0


@pytest.mark.parametrize("algorithm", ["raft", "raft_pp", "grpo"])
@pytest.mark.parametrize("cap", [1.1, 1e9])
def test_corrected_loss_and_gradient_are_the_formula_written_out(algorithm, cap):
    o = objective(algorithm, "reward", kl_coefficient=0.3, kl_estimator="k2", importance_cap=cap)
    logprobs, behaviour, reference, lengths, terms = batch()
    old = logprobs + RNG.normal(size=logprobs.shape).astype(np.float32) * 0.2

    def loss(logprobs, old, behaviour):
        sums = o.loss_sums(logprobs, behaviour, old, reference, terms, lengths, jnp.ones(()))
        return sums.loss, sums

    (total, sums), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(logprobs, old, behaviour)
    args = behaviour, old, reference, lengths, terms
    np.testing.assert_allclose(total, written_out(o, logprobs, *args), rtol=1e-4)
    inside = np.arange(5) < lengths[:, None]
    np.testing.assert_allclose(sums.truncated_weights, (inside & (np.exp(old - behaviour) > cap)).sum())
    assert (sums.truncated_weights > 0) == (cap < 2)
    np.testing.assert_allclose(sums.mismatch, (inside * np.abs(logprobs - behaviour)).sum(), rtol=1e-5)

    for at in np.ndindex(logprobs.shape):  # central differences in float64
        step = np.zeros(logprobs.shape)
        step[at] = 1e-6
        slope = (written_out(o, logprobs + step, *args) - written_out(o, logprobs - step, *args)) / 2e-6
        np.testing.assert_allclose(gradients[0][at], slope, rtol=1e-4, atol=1e-5)
    if algorithm == "raft":  # has no ratio: they are in the weight alone, a constant
        assert not gradients[1].any() and not gradients[2].any()


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("algorithm", ["raft", "raft_pp", "grpo"])
@pytest.mark.parametrize("cap", [1.3, 1e9])
def test_expected_gradient_over_all_answers(algorithm, cap):
    """Every answer of two tokens out of three, weighed by how likely the behaviour policy gives it.

    The trained policy's odds of a token are met, between tokens that the behaviour policy chose; with a single token,
    or an advantage that all answers share, that is the gradient of the trained policy.
    """
    first, second = RNG.normal(size=3), RNG.normal(size=(3, 3))  # logits of token 1, and of token 2 after token 1
    b_first, b_second = (softmax(x + 0.5 * RNG.normal(size=x.shape)) for x in (first, second))
    one, two = softmax(first), softmax(second)
    answers = np.array(list(np.ndindex(3, 3)))
    x, y = answers.T
    likelihood = (b_first[x] * b_second[x, y]).astype(np.float32)
    behaviour = np.log(np.stack([b_first[x], b_second[x, y]], 1)).astype(np.float32)
    o = objective(algorithm, "reward", importance_cap=cap)

    def logprobs_of(logits):
        first, second = map(jax.nn.log_softmax, logits)
        return jnp.stack([first[x], second[x, y]], 1)

    def expected_gradient(o, advantage, length):
        terms = SampleTerms(advantage.astype(np.float32), likelihood, likelihood)
        old = None if o.importance_cap is None else logprobs_of((first, second))

        def loss(logits):
            lengths = np.full(9, length)
            return o.loss_sums(logprobs_of(logits), behaviour, old, None, terms, lengths, jnp.ones(())).loss

        return jax.grad(loss)((jnp.asarray(first), jnp.asarray(second)))

    advantage = RNG.normal(size=(3, 3))
    # d log π(i) / d logits = 1_i − π, summed over what the behaviour policy draws, times the capped weight of token i.
    weight_one, weight_two = b_first * np.minimum(one / b_first, cap), b_second * np.minimum(two / b_second, cap)
    after = (b_second * advantage).sum(1)  # mean advantage after a first token
    gain_one, gain_two = weight_one * after, weight_two * advantage * b_first[:, None]
    gradient_one = -(gain_one - one * gain_one.sum())
    gradient_two = -(gain_two - two * gain_two.sum(1, keepdims=True))
    found = expected_gradient(o, advantage.ravel(), length=2)
    np.testing.assert_allclose(found[0], gradient_one, atol=1e-6)
    np.testing.assert_allclose(found[1], gradient_two, atol=1e-6)

    if cap > 2:
        reward = RNG.normal(size=3)
        single = expected_gradient(o, reward[x], length=1)
        np.testing.assert_allclose(single[0], -one * (reward - (one * reward).sum()), atol=1e-6)
        shared = expected_gradient(o, np.ones(9), length=2)
        np.testing.assert_allclose(jnp.concatenate([shared[0], shared[1].ravel()]), 0, atol=1e-6)
        uncorrected = expected_gradient(objective("raft", "reward"), np.ones(9), length=2)
        assert np.abs(uncorrected[0]).max() > 0.02


def test_only_other_weights_in_rollouts_are_corrected():
    config = default.get_config().objective
    assert Objective.from_config(config, corrected=True).importance_cap == 2.0
    assert Objective.from_config(config, corrected=False).importance_cap is None


def test_sums_and_denominators_add_up_over_micro_batches():
    for weighting, expected in (("reward", 6 * 0.25 * 5), ("token_mean", None)):
        o = objective("grpo", weighting)
        logprobs, behaviour, _, lengths, terms = batch()
        parts = []
        for rows in (slice(0, 6), slice(0, 2), slice(2, 6)):
            some = SampleTerms(terms.advantage[rows], terms.weight[rows], terms.kl_weight[rows])
            denominator = o.denominator(some, lengths[rows], 5, prompts_per_sample=0.25)
            parts.append(o.loss_sums(logprobs[rows], behaviour[rows], None, None, some, lengths[rows], denominator))
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
