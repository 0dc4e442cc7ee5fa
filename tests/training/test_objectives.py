"""Advantages, weights and token terms against plain loops, and expected gradients by listing every draw.

The lists are those of a policy over three tokens, of which 0 ends an answer, cut after two: seven answers. All n-tuples
of them are met with their probability, so an expectation is a sum and a claim about it is checked to rounding.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gvm_jax.config import get_config
from gvm_jax.training.objectives import ALGORITHMS, WEIGHTINGS, Objective, SampleTerms, Tokens, kl_estimate

PAIRS = [(name, algorithm.weighting) for name, algorithm in ALGORITHMS.items()] + [
    ("raft_pp", "reward"),
    ("reinforce", "token_mean"),
    ("rloo", "sequence_mean"),
    ("grpo", "reward"),
    ("gspo", "reward"),
]


def objective(algorithm="raft_pp", weighting="log_likelihood", **changes):
    settings = dict(clip_low=0.2, clip_high=0.28, kl_coefficient=0.0, kl_estimator="k3") | changes
    return Objective(algorithm=algorithm, weighting=weighting, **settings)


def plain_terms(o, rewards, segments, num_segments, mixture_weight, counted, trained, lengths):
    """Advantage, weight of a token's gain and of its KL of each sample, and the denominator, one by one."""
    rows = range(len(rewards))
    longest, parts, denominator = lengths.max(), [], 0.0
    for j in rows:
        if not trained[j]:
            parts.append((0.0, 0.0, 0.0))
            continue
        r = float(rewards[j])
        group = [float(rewards[k]) for k in rows if counted[k] and segments[k] == segments[j]]
        others = [float(rewards[k]) for k in rows if counted[k] and segments[k] == segments[j] and k != j]
        advantage = {
            "raft": lambda r, group, others: max(r, 0.0),
            "raft_pp": lambda r, group, others: max(r, 0.0),
            "reinforce": lambda r, group, others: r,
            "rloo": lambda r, group, others: r - np.mean(others) if others else 0.0,
            "dr_grpo": lambda r, group, others: r - np.mean(group),
        }.get(
            o.algorithm,
            lambda r, group, others: (r - np.mean(group)) / (np.std(group, ddof=1) + 1e-6) if others else 0.0,
        )(r, group, others)
        siblings = [k for k in rows if trained[k] and segments[k] == segments[j]]
        accepted = [k for k in siblings if rewards[k] > 0]
        per_sample = {
            "log_likelihood": 1 / len(accepted) if r > 0 else 0.0,
            "token_mean": 1.0,
        }.get(o.weighting, 1 / len(siblings))
        kl = 1.0 if o.weighting == "token_mean" else 1 / len(siblings)
        token = 1 / lengths[j] if o.weighting == "sequence_mean" else 1.0
        parts.append((advantage, mixture_weight[j] * per_sample * token, mixture_weight[j] * kl * token))
        denominator += mixture_weight[j] * lengths[j] if o.weighting == "token_mean" else 0.0
    if o.weighting != "token_mean":
        denominator = num_segments * (1.0 if o.weighting == "sequence_mean" else longest)
    return np.array(parts).T, denominator


def plain_loss(o, logprobs, behaviour, old, reference, lengths, advantage, weight, kl_weight):
    """The sum of losses and its gradient, token by token."""
    total, gradient = 0.0, np.zeros(logprobs.shape)
    for j in range(len(lengths)):
        a, length = advantage[j], lengths[j]
        token_ratios = np.exp(np.float64(logprobs[j, :length]) - old[j, :length])
        for t in range(length):
            correction = 1.0
            if o.importance_cap is not None:
                correction = min(np.exp(np.float64(old[j, t]) - behaviour[j, t]), o.importance_cap)
            ratio = np.prod(token_ratios) ** (1 / length) if o.algorithm == "gspo" else token_ratios[t]
            gain, slope = ratio * a, ratio * a
            if (a > 0 and ratio > 1 + o.clip_high) or (a < 0 and ratio < 1 - o.clip_low):
                gain, slope = (1 + o.clip_high if a > 0 else 1 - o.clip_low) * a, 0.0
            if o.dual_clip and a < 0 and ratio > o.dual_clip:
                gain, slope = o.dual_clip * a, 0.0
            if o.algorithm == "raft":
                gain, slope = logprobs[j, t] * a, a
            total -= correction * weight[j] * gain
            gradient[j, t] -= correction * weight[j] * slope
            if o.kl_coefficient:
                d = np.float64(reference[j, t]) - logprobs[j, t]
                kl = {"k1": (-d, 1), "k2": (d * d / 2, -d), "k3": (np.exp(d) - d - 1, 1 - np.exp(d))}[o.kl_estimator]
                total += correction * o.kl_coefficient * kl_weight[j] * kl[0]
                gradient[j, t] += correction * o.kl_coefficient * kl_weight[j] * kl[1]
    return total, gradient


# A prompt with all kinds of rewards, one with equal ones, one with a single sample, one all wrong, one with a single
# trained sample; rows drawn but not trained on; two rows of padding, one of them with a prompt's number. Shuffled.
ROWS = np.random.default_rng(1).permutation(18)
SEGMENTS = np.array([0, 0, 0, 0, 1, 1, 2, 3, 3, 3, 4, 4, 4, 0, 3, 1, 5, 0], np.int32)[ROWS]
REWARDS = np.array([1, -0.5, 0, 2, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0.25, 0, 1, 7, np.nan], np.float32)[ROWS]
COUNTED = np.array([1] * 16 + [0, 0], bool)[ROWS]
TRAINED = np.array([1] * 11 + [0] * 7, bool)[ROWS]
LENGTHS = np.array([3, 5, 1, 4, 2, 5, 3, 4, 4, 1, 2, 5, 3, 3, 2, 4, 0, 0], np.int32)[ROWS]
MIXTURE_WEIGHT = np.linspace(0.1, 0.9, 6).astype(np.float32)[SEGMENTS]


def batch(rng, spread=0.4):
    """Log-probabilities of the rows above: trained, behaviour, old and reference; NaN beyond the answers."""
    logprobs = -rng.exponential(size=(18, 5))
    behaviour, old, reference = (logprobs + s * rng.normal(size=logprobs.shape) for s in (spread, spread / 2, 1.0))
    outside = np.arange(5) >= LENGTHS[:, None]
    return [np.where(outside, np.nan, x).astype(np.float32) for x in (logprobs, behaviour, old, reference)]


def terms_of(o, mixture_weight=MIXTURE_WEIGHT):
    return o.sample_terms(REWARDS, SEGMENTS, 5, mixture_weight, COUNTED, TRAINED)


@pytest.mark.parametrize(("algorithm", "weighting"), PAIRS)
def test_loss_is_the_loop_written_out(algorithm, weighting):
    o = objective(algorithm, weighting, kl_coefficient=0.3, dual_clip=1.5 if algorithm in ("dapo", "gspo") else 0.0)
    logprobs, behaviour, _, reference = batch(np.random.default_rng(2))

    @jax.jit
    def loss(logprobs):
        terms = terms_of(o)
        denominator = o.denominator(terms, LENGTHS, 5, 5 / TRAINED.sum())
        sums = o.loss_sums(logprobs, behaviour, None, reference, Tokens.of_rows(LENGTHS, 5), terms, LENGTHS)
        return sums.loss, (terms, sums, denominator)

    gradient, (terms, sums, found_denominator) = jax.grad(loss, has_aux=True)(logprobs)
    weights, denominator = plain_terms(o, REWARDS, SEGMENTS, 5, MIXTURE_WEIGHT, COUNTED, TRAINED, LENGTHS)
    total, slopes = plain_loss(o, logprobs, behaviour, behaviour, reference, LENGTHS, *weights)
    np.testing.assert_allclose(terms.advantage, weights[0], atol=1e-5)
    np.testing.assert_allclose(sums.loss, total, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found_denominator, denominator, rtol=1e-6)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-6)
    assert sums.tokens == LENGTHS[TRAINED].sum() and sums.truncated_weights == 0
    assert np.isfinite(jax.tree.leaves(sums)).all()


@pytest.mark.parametrize("algorithm", ["raft", "raft_pp", "grpo", "gspo"])
@pytest.mark.parametrize("cap", [1.1, 1e9])
def test_corrected_loss_is_the_loop_written_out(algorithm, cap):
    weighting = ALGORITHMS[algorithm].weighting
    o = objective(algorithm, weighting, kl_coefficient=0.3, kl_estimator="k2", importance_cap=cap)
    logprobs, behaviour, old, reference = batch(np.random.default_rng(3))

    @jax.jit
    def loss(logprobs, old, behaviour):
        sums = o.loss_sums(logprobs, behaviour, old, reference, Tokens.of_rows(LENGTHS, 5), terms_of(o), LENGTHS)
        return sums.loss, sums

    gradients, sums = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(logprobs, old, behaviour)
    weights, _ = plain_terms(o, REWARDS, SEGMENTS, 5, MIXTURE_WEIGHT, COUNTED, TRAINED, LENGTHS)
    total, slopes = plain_loss(o, logprobs, behaviour, old, reference, LENGTHS, *weights)
    np.testing.assert_allclose(sums.loss, total, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradients[0], slopes, rtol=1e-4, atol=1e-6)
    inside = (np.arange(5) < LENGTHS[:, None]) & TRAINED[:, None]
    np.testing.assert_allclose(sums.truncated_weights, (inside & (np.exp(old - behaviour) > cap)).sum())
    assert (sums.truncated_weights > 0) == (cap < 2)
    np.testing.assert_allclose(sums.mismatch, np.abs(logprobs - behaviour)[inside].sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.max_mismatch, np.abs(logprobs - behaviour)[inside].max(), rtol=1e-5)
    if algorithm == "raft":  # has no ratio: they are in the weight alone, a constant
        assert not gradients[1].any() and not gradients[2].any()


def test_gspo_is_the_published_objective_of_whole_answers():
    """1/n Σ min(sA, clip(s)A) with s = (π(y)/π_old(y))^(1/|y|), differentiated as it stands."""
    o = objective("gspo", "sequence_mean", clip_low=0.05, clip_high=0.1)
    logprobs, behaviour, *_ = batch(np.random.default_rng(4))
    (advantage, _, _), _ = plain_terms(o, REWARDS, SEGMENTS, 5, MIXTURE_WEIGHT, COUNTED, TRAINED, LENGTHS)
    n = np.array([max(TRAINED[SEGMENTS == i].sum(), 1) for i in SEGMENTS])
    inside = (np.arange(5) < LENGTHS[:, None]) & TRAINED[:, None]

    def published(logprobs):
        ratios = jnp.where(inside, logprobs - behaviour, 0.0).sum(1) / np.maximum(LENGTHS, 1)
        s = jnp.exp(ratios)
        gain = jnp.minimum(s * advantage, jnp.clip(s, 0.95, 1.1) * advantage)
        return -(jnp.where(TRAINED, gain, 0.0) / n).sum(), s

    def ours(logprobs):
        sums = o.loss_sums(
            logprobs, behaviour, None, None, Tokens.of_rows(LENGTHS, 5), terms_of(o, np.ones(18)), LENGTHS
        )
        return sums.loss, sums

    (expected, s), slopes = jax.jit(jax.value_and_grad(published, has_aux=True))(jnp.nan_to_num(logprobs))
    (found, sums), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(logprobs)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-7)
    cut = ((s > 1.1) & (advantage > 0)) | ((s < 0.95) & (advantage < 0))
    assert sums.clipped == LENGTHS[cut].sum() and 0 < cut.sum() < (advantage != 0).sum()


def test_dual_clip_bounds_the_pull_of_worse_answers():
    """At ratio 4 and advantage −1 PPO leaves the pull as it is, and dual clip holds it at c = 3."""
    o = [objective("reinforce", "reward", dual_clip=c) for c in (0.0, 3.0)]
    terms = SampleTerms(jnp.array([-1.0, -1.0, 1.0]), jnp.ones(3), jnp.ones(3), jnp.ones(3, bool))
    logprobs = jnp.log(jnp.array([[4.0], [2.0], [4.0]])) - 5.0

    def gain(o, logprobs):
        ones = jnp.ones(3, int)
        sums = o.loss_sums(logprobs, jnp.full((3, 1), -5.0), None, None, Tokens.of_rows(ones, 1), terms, ones)
        return -sums.loss, sums

    for settings, expected, slopes, clipped in zip(
        o, (-4 - 2 + 1.28, -3 - 2 + 1.28), ([-4, -2, 0], [0, -2, 0]), (1, 2), strict=True
    ):
        (found, sums), gradient = jax.value_and_grad(functools.partial(gain, settings), has_aux=True)(logprobs)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient[:, 0], slopes, rtol=1e-5)
        assert sums.clipped == clipped


@pytest.mark.parametrize("algorithm", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("reward", [1.0, 0.7, -0.1])
def test_equal_rewards_say_nothing(algorithm, reward):
    """Exactly: rounding of their mean would be divided by a std that is no more than that rounding."""
    segments = np.repeat(np.arange(40), np.arange(1, 41)).astype(np.int32)
    every, one = np.ones(len(segments), bool), np.ones(len(segments), np.float32)

    @jax.jit
    def advantage(rewards):
        return objective(algorithm, "reward").sample_terms(rewards, segments, 40, one, every, every).advantage

    assert not advantage(reward * one).any()


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("log_likelihood", [1, 0, 0, 1 / 2, 1 / 2, 1, 0, 0, 1]),
        ("reward", [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 1, 1 / 2, 1 / 2, 1]),
        ("sequence_mean", [1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 1, 1 / 2, 1 / 2, 1]),
        ("token_mean", np.ones(9)),
    ],
)
def test_weights_state_the_objective(weighting, expected):
    rewards = np.array([1, 0, 0, 1, 1, 1, 0, 0, 1], np.float32)
    segments = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4], np.int32)  # mixed, all right, a single, all wrong, a single
    mixture_weight, every = np.linspace(0.1, 0.9, 9).astype(np.float32), np.ones(9, bool)
    terms = objective("raft", weighting).sample_terms(rewards, segments, 5, mixture_weight, every, every)
    np.testing.assert_allclose(terms.weight, mixture_weight * expected, rtol=1e-6)
    np.testing.assert_allclose(terms.advantage, rewards)
    per_sample = np.ones(9) if weighting == "token_mean" else [1 / 3] * 3 + [1 / 2] * 2 + [1] + [1 / 2] * 2 + [1]
    np.testing.assert_allclose(terms.kl_weight, mixture_weight * per_sample, rtol=1e-6)


ANSWERS = [(0,), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]
LENGTH = np.array([len(y) for y in ANSWERS])
TOKENS = np.array([(*y, 0)[:2] for y in ANSWERS])
RIGHT = np.array([0, 1, 0, 0, 1, 0, 1], np.float32)  # all of two tokens
RIGHT_SHORT = np.array([1, 0, 0, 1, 0, 1, 0], np.float32)
REAL = np.array([0.7, -0.3, 1.2, 0.1, -0.9, 0.4, 2.0], np.float32)


class Policy:
    """A table of logits: of the first token, and of the second after token 1 or 2; what follows from it exactly."""

    def __init__(self, seed):
        self.logits = np.random.default_rng(seed).normal(size=(3, 3))
        table = np.exp(self.logits) / np.exp(self.logits).sum(1, keepdims=True)
        self.probability, self.score = np.zeros(7), np.zeros((7, 3, 3))  # of each answer; score = ∇ log probability
        for i, y in enumerate(ANSWERS):
            self.probability[i] = np.prod([table[state, token] for state, token in zip((0, y[0]), y, strict=False)])
            for state, token in zip((0, y[0]), y, strict=False):
                self.score[i, state] += np.eye(3)[token] - table[state]

    def gradient(self, rewards, score=None):
        """Σ_y π(y) r(y) score(y); with the score itself, the gradient of the mean reward."""
        return np.einsum("y,y,yab->ab", self.probability, rewards, self.score if score is None else score)

    def moments(self, rewards, score):
        """p, and of the accepted and of the rejected answers' scores the mean and the mean squared norm."""
        p = self.probability @ rewards
        means, squares = [], []
        for weight in (self.probability * rewards / p, self.probability * (1 - rewards) / (1 - p)):
            means.append(np.einsum("y,yab->ab", weight, score))
            squares.append(weight @ (score**2).sum((1, 2)))
        return p, means, squares


POLICIES = [Policy(10), Policy(11)]
PER_TOKEN = [policy.score / LENGTH[:, None, None] for policy in POLICIES]


def everything(rewards, segments):
    return segments < 2, segments < 2


def draws(counts):
    """All answers that the prompts' samples may be, [X, Σn], and the probability of each."""
    owner = np.repeat(np.arange(len(counts)), counts)
    answers = np.array(list(itertools.product(range(7), repeat=len(owner))))
    return owner, answers, np.prod([POLICIES[i].probability[answers[:, j]] for j, i in enumerate(owner)], axis=0)


def estimates(o, counts, rewards, select=everything):
    """The gradient estimate −∇loss of every draw, [X, prompts, 3, 3], and the draw's probability.

    Scaled to Σ_i of the prompts' means (with weighting 'reward' of Σ_t, with 'sequence_mean' of the tokens' mean). Rows
    are not in the prompts' order, and two are padding.
    """
    owner, answers, probability = draws(counts)
    place = np.random.default_rng(5).permutation(len(owner) + 2)  # rows of the samples, then of the padding
    segments = np.full(len(place), 2, np.int32)
    segments[place[:-2]] = owner
    prompts = len(counts)
    scale = {"longest": 2 * prompts, "own": prompts, "all": 1}[WEIGHTINGS[o.weighting].tokens]

    def estimate(draw):
        row = jnp.zeros(len(place), int).at[place[:-2]].set(draw)
        padding = segments == 2
        graded = jnp.where(padding, jnp.nan, jnp.asarray(rewards)[row])
        lengths = jnp.where(padding, 0, jnp.asarray(LENGTH)[row])
        counted, trained = select(graded, segments)
        terms = o.sample_terms(graded, jnp.where(padding, 2, segments), 2, jnp.ones(len(place)), counted, trained)

        def loss(logits):
            table = jax.nn.log_softmax(logits)[np.minimum(segments, prompts - 1)]
            tokens = jnp.asarray(TOKENS)[row]
            first = jnp.take_along_axis(table[:, 0], tokens[:, :1], 1)
            second = table[jnp.arange(len(place)), tokens[:, 0], tokens[:, 1]][:, None]
            logprobs = jnp.where(jnp.arange(2) < lengths[:, None], jnp.concatenate([first, second], 1), jnp.nan)
            denominator = o.denominator(terms, lengths, 2, prompts / trained.sum())
            sampled = jax.lax.stop_gradient(logprobs)
            tokens = Tokens.of_rows(lengths, 2)
            return o.loss_sums(logprobs, sampled, None, None, tokens, terms, lengths).loss / denominator

        return -scale * jax.grad(loss)(jnp.asarray([POLICIES[i].logits for i in range(prompts)], jnp.float32))

    return np.asarray(jax.jit(jax.vmap(estimate))(answers), np.float64), probability


def expected(o, counts, rewards, select=everything):
    found, probability = estimates(o, counts, rewards, select)
    np.testing.assert_allclose(probability.sum(), 1.0)
    return np.einsum("x,xiab->iab", probability, found)


def close(found, truth):
    np.testing.assert_allclose(found, truth, atol=3e-6)


UNBIASED = [("raft", 1), ("raft_pp", 1), ("reinforce", 1), ("rloo", 2)]


@pytest.mark.parametrize(("algorithm", "least"), UNBIASED)
def test_unbiased_at_every_number_of_samples(algorithm, least):
    truth = POLICIES[0].gradient(RIGHT)
    for n in range(least, least + 3):
        close(expected(objective(algorithm, "reward"), (n,), RIGHT)[0], truth)
    if algorithm == "rloo":
        close(expected(objective(algorithm, "reward"), (1,), RIGHT)[0], 0)


@pytest.mark.parametrize(("algorithm", "least"), UNBIASED)
def test_unbiased_with_real_rewards(algorithm, least):
    rewards = np.maximum(REAL, 0) if algorithm.startswith("raft") else REAL
    close(expected(objective(algorithm, "reward"), (3,), REAL)[0], POLICIES[0].gradient(rewards))
    # Σ over tokens over |y|: the gradient of the mean of r/|y|, for rloo less that of the mean of 1/|y| times E[r].
    truth = POLICIES[0].gradient(rewards, PER_TOKEN[0])
    if algorithm == "rloo":
        truth -= POLICIES[0].probability @ REAL * POLICIES[0].gradient(np.ones(7), PER_TOKEN[0])
    for n in (least, least + 1):
        close(expected(objective(algorithm, "sequence_mean"), (n,), REAL)[0], truth)


@pytest.mark.parametrize("algorithm", ["raft", "raft_pp"])
def test_log_likelihood_counts_prompts_by_their_odds_of_an_accepted_sample(algorithm):
    p = POLICIES[0].probability @ RIGHT
    for n in (1, 2, 3):
        found = expected(objective(algorithm, "log_likelihood"), (n,), RIGHT)[0]
        close(found, (1 - (1 - p) ** n) * POLICIES[0].gradient(RIGHT) / p)


def test_group_means_shrink_by_the_sample_in_them():
    for n in (1, 2, 3, 4):
        found = expected(objective("dr_grpo", "reward"), (n,), REAL)[0]
        close(found, (n - 1) / n * POLICIES[0].gradient(REAL))


def binomial(p, n):
    """Probability of k accepted of n, k = 0 ... n."""
    return np.array([len(list(itertools.combinations(range(n), k))) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


@pytest.mark.parametrize("rewards", [RIGHT, RIGHT_SHORT])
@pytest.mark.parametrize(
    ("algorithm", "weighting"), [("grpo", "reward"), ("grpo", "sequence_mean"), ("gspo", "sequence_mean")]
)
def test_group_stds_shrink_further(algorithm, weighting, rewards):
    score = POLICIES[0].score if weighting == "reward" else PER_TOKEN[0]
    p, means, _ = POLICIES[0].moments(rewards, score)
    for n in (1, 2, 3, 4):
        stds = [np.std([1] * k + [0] * (n - k), ddof=1) if n > 1 else 0.0 for k in range(n + 1)]
        found = expected(objective(algorithm, weighting), (n,), rewards)[0]
        close(found, (n - 1) / n * (binomial(p, n) @ stds) * (means[0] - means[1]))


@pytest.mark.parametrize(("algorithm", "least"), UNBIASED)
def test_unequal_counts_of_two_prompts(algorithm, least):
    found = expected(objective(algorithm, "reward"), (least, 5 - least), RIGHT)
    close(found, [policy.gradient(RIGHT) for policy in POLICIES])


def test_unequal_counts_weigh_the_prompts_elsewhere():
    p = [policy.probability @ RIGHT for policy in POLICIES]
    found = expected(objective("raft_pp", "log_likelihood"), (1, 3), RIGHT)
    odds = 1 - (1 - p[0]), 1 - (1 - p[1]) ** 3
    close(found, [w * policy.gradient(RIGHT) / q for w, q, policy in zip(odds, p, POLICIES, strict=True)])
    found = expected(objective("dr_grpo", "reward"), (2, 3), RIGHT)
    close(found, [w * policy.gradient(RIGHT) for w, policy in zip((1 / 2, 2 / 3), POLICIES, strict=True)])


def first_best_and_first_worst(rewards, segments):
    """Of each prompt two of its samples, as a rule that looks at the rewards may keep."""
    kept = jnp.zeros(len(segments), bool)
    for prompt in range(2):
        mine = jnp.asarray(segments == prompt)
        best = jnp.argmax(jnp.where(mine, rewards, -jnp.inf))
        worst = jnp.argmin(jnp.where(mine & (jnp.arange(len(segments)) != best), rewards, jnp.inf))
        kept = kept.at[best].max(mine.any()).at[worst].max(mine.sum() > 1)
    return kept & (segments < 2)


def plain_expectation(o, counts, rewards, select):
    """Σ over draws of probability times Σ_j weight · advantage · score / denominator."""
    owner, answers, probability = draws(counts)
    total = np.zeros((len(counts), 3, 3))
    for draw, odds in zip(answers, probability, strict=True):
        graded = rewards[draw]
        counted, trained = map(np.asarray, select(graded, owner))
        args = graded, owner, len(counts), np.ones(len(owner)), counted, trained, LENGTH[draw]
        (advantage, weight, _), denominator = plain_terms(o, *args)
        if o.weighting != "token_mean":
            denominator = 1.0
        for j, i in enumerate(owner):
            total[i] += odds * weight[j] * advantage[j] * POLICIES[i].score[draw[j]] / denominator
    return total


@pytest.mark.parametrize("algorithm", ["raft_pp", "rloo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("baseline", ["kept", "drawn"])
def test_training_on_a_subset_that_rests_on_the_rewards(algorithm, baseline):
    def select(rewards, segments):
        kept = first_best_and_first_worst(rewards, segments)
        return (kept if baseline == "kept" else segments < 2), kept

    o = objective(algorithm, ALGORITHMS[algorithm].weighting)
    # The rule keeps the first of equal rewards; samples are exchangeable, so their rows' order does not matter.
    close(expected(o, (3,), REAL, select), plain_expectation(o, (3,), REAL, select))


def test_a_subset_that_does_not_rest_on_the_rewards_biases_nothing():
    def first_of(segments):
        return np.arange(len(segments)) == np.flatnonzero(segments == 0)[0]

    truth = POLICIES[0].gradient(REAL)
    alone = expected(objective("rloo", "reward"), (3,), REAL, lambda _, s: (s < 2, first_of(s)))
    close(alone[0], truth)  # one trained sample, compared with two that are not
    two = expected(objective("reinforce", "reward"), (3,), REAL, lambda _, s: ((s < 2) & ~first_of(s),) * 2)
    close(two[0], truth)


@pytest.mark.parametrize("algorithm", ["reinforce", "dapo"])
def test_token_mean_lets_the_counts_weigh_the_prompts(algorithm):
    o = objective(algorithm, "token_mean")
    found = {counts: expected(o, counts, RIGHT) for counts in ((1, 3), (3, 1), (2, 2))}
    close(found[2, 2], plain_expectation(o, (2, 2), RIGHT, everything))
    assert np.linalg.norm(found[1, 3][0]) < 0.8 * np.linalg.norm(found[3, 1][0])


def test_variances_are_those_that_allocation_minimises():
    """A draw's squared distance from the mean, against the formulas from the scores' moments."""
    score = POLICIES[0].score
    p, (one, zero), (square_one, square_zero) = POLICIES[0].moments(RIGHT, score)
    gradient = np.sum((p * one) ** 2)

    def variance(algorithm, n, weighting="reward"):
        found, probability = estimates(objective(algorithm, weighting), (n,), RIGHT)
        mean = np.einsum("x,x...->...", probability, found)
        return probability @ ((found - mean) ** 2).sum((1, 2, 3))

    V = p * (1 - p) ** 2 * square_one + p**2 * (1 - p) * square_zero - gradient
    W = p * (1 - p) * (square_one + square_zero - 2 * np.sum(one * zero)) / 2 - gradient
    for n in (2, 3, 4):
        rloo = ((n - 2) * V + 2 * W) / (n * (n - 1))
        np.testing.assert_allclose(variance("reinforce", n), (p * square_one - gradient) / n, rtol=1e-5)
        np.testing.assert_allclose(variance("rloo", n), rloo, rtol=1e-5)
        np.testing.assert_allclose(variance("dr_grpo", n), ((n - 1) / n) ** 2 * rloo, rtol=1e-5)
        odds, spread = binomial(p, n), np.sum(one**2)
        q = (1 - p) ** n
        self_normalised = (odds[1:] / np.arange(1, n + 1)).sum() * (square_one - spread) + q * (1 - q) * spread
        np.testing.assert_allclose(variance("raft_pp", n, "log_likelihood"), self_normalised, rtol=1e-5)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("algorithm", ["raft", "grpo", "gspo"])  # no ratio, the tokens', the answer's
@pytest.mark.parametrize("cap", [1.3, 1e9])
def test_expected_gradient_over_all_answers(algorithm, cap):
    """Every answer of two tokens out of three, weighed by how likely the behaviour policy gives it.

    The trained policy's odds of a token are met, between tokens that the behaviour policy chose; with a single token,
    or an advantage that all answers share, that is the gradient of the trained policy.
    """
    rng = np.random.default_rng(6)
    first, second = rng.normal(size=3), rng.normal(size=(3, 3))  # logits of token 1, and of token 2 after token 1
    b_first, b_second = (softmax(x + 0.5 * rng.normal(size=x.shape)) for x in (first, second))
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
        terms = SampleTerms(advantage.astype(np.float32), likelihood, likelihood, np.ones(9, bool))
        old = None if o.importance_cap is None else logprobs_of((first, second))

        def loss(logits):
            lengths = np.full(9, length)
            tokens = Tokens.of_rows(lengths, 2)
            return o.loss_sums(logprobs_of(logits), behaviour, old, None, tokens, terms, lengths).loss

        return jax.grad(loss)((jnp.asarray(first), jnp.asarray(second)))

    advantage = rng.normal(size=(3, 3))
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
        reward = rng.normal(size=3)
        single = expected_gradient(o, reward[x], length=1)
        np.testing.assert_allclose(single[0], -one * (reward - (one * reward).sum()), atol=1e-6)
        shared = expected_gradient(o, np.ones(9), length=2)
        np.testing.assert_allclose(jnp.concatenate([shared[0], shared[1].ravel()]), 0, atol=1e-6)
        uncorrected = expected_gradient(objective("raft", "reward"), np.ones(9), length=2)
        assert np.abs(uncorrected[0]).max() > 0.02


def test_settings_come_from_the_config():
    config = get_config().objective
    assert Objective.from_config(config, corrected=True).importance_cap == 2.0
    assert Objective.from_config(config, corrected=False).importance_cap is None
    with config.unlocked():
        config.algorithm, config.dual_clip = "grpo", 3.0
        assert Objective.from_config(config, corrected=False).weighting == "sequence_mean"
        assert Objective.from_config(config, corrected=False).dual_clip == 3.0
        assert not Objective.from_config(config, corrected=False).mask_truncated
        config.weighting = "reward"
        assert Objective.from_config(config, corrected=False).weighting == "reward"


@pytest.mark.parametrize(
    ("algorithm", "weighting"),
    [("raft_pp", "log_likelihood"), ("grpo", "reward"), ("gspo", "sequence_mean"), ("dapo", "token_mean")],
)
def test_sums_and_denominators_add_up_over_micro_batches(algorithm, weighting):
    o = objective(algorithm, weighting, kl_coefficient=0.1)
    logprobs, behaviour, _, reference = batch(np.random.default_rng(7))
    rows_of = jax.tree.map(jnp.asarray, (terms_of(o), LENGTHS, logprobs, behaviour, reference))

    @jax.jit
    def part(rows):
        some, lengths, logprobs, behaviour, reference = jax.tree.map(lambda x: x[rows], rows_of)
        denominator = o.denominator(some, lengths, 5, prompts_per_sample=5 / TRAINED.sum())
        sums = o.loss_sums(logprobs, behaviour, None, reference, Tokens.of_rows(lengths, 5), some, lengths)
        return {**dataclasses.asdict(sums), "denominator": denominator}

    order = np.random.default_rng(8).permutation(18)
    whole, parts = part(np.arange(18)), [part(rows) for rows in np.split(order, 3)]
    for name, found in whole.items():
        values = [p[name] for p in parts]
        total = max(values) if name == "max_mismatch" else sum(values)
        np.testing.assert_allclose(found, total, rtol=1e-5, err_msg=name)
    padding = part(np.flatnonzero(~COUNTED))
    assert not any(jax.tree.leaves(padding)), "padding adds nothing, to the denominator either"


def test_samples_without_a_gradient_are_known():
    weight, kl_weight = jnp.array([0.5, 0.5, 0.0, 0.0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    terms = SampleTerms(jnp.array([1.0, 0.0, 1.0, 0.0]), weight, kl_weight, jnp.array([True, True, True, False]))
    np.testing.assert_array_equal(objective().has_gradient(terms), [True, False, False, False])
    np.testing.assert_array_equal(objective(kl_coefficient=0.1).has_gradient(terms), [True, True, True, False])


def test_kl_estimates_in_expectation():
    """Under samples of π, k1 and k3 have the KL as their mean; k2 is near it for near policies."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.45, 0.35, 0.2])
    kl = (p * np.log(p / q)).sum()
    for name, tolerance in (("k1", 1e-6), ("k3", 1e-6), ("k2", 1e-3)):
        estimate = (p * np.asarray(kl_estimate(np.log(p), np.log(q), name))).sum()
        assert abs(estimate - kl) < tolerance
