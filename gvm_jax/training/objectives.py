"""The objectives: what each sampled token weighs in the loss. Pure; knows no model.

The loss of a step is a sum over its trained samples j, answers y_j to prompts i, and their tokens t,

    L = −Σ_j mixture_weight_j · weight_j · Σ_t gain(ratio_jt, A_j) / denominator.

The algorithm says what a sample's advantage A_j is and which importance ratio is clipped (`ALGORITHMS`), the weighting
what samples and tokens weigh, and so which objective is maximised (`WEIGHTINGS`). A prompt has n trained samples, k of
them accepted; T is `max_response`:

    weighting        sample  token          maximised
    log_likelihood   1/k     1/T            Σ_i ln p_i, from accepted samples (arXiv 2505.02391, Algorithm 1)
    reward           1/n     1/T            Σ_i E[A]
    sequence_mean    1/n     1/|y|          Σ_i E[A/|y|]: a short answer weighs as much as a long one (arXiv 2402.03300)
    token_mean       1       1/all tokens   prompts weigh by their tokens, so the counts change it (the code of GVM and
                                            DAPO; DAPO's equation has one such mean for each prompt)

Each prompt's share of the expected gradient, before the first update (so at ratio 1) and for rewards in {0, 1}. p is
the accept rate, s = ∇ ln π(y), μ₁, μ₀ and G₁², G₀² the means of s and ‖s‖² over accepted and rejected answers, ŝ_n the
rewards' std; ∇p = p μ₁ = p(1−p)(μ₁−μ₀). The variance is about a·φ(n), what an allocation of samples should minimise:

    algorithm                weighting       expected gradient               φ(n)        a
    raft, raft_pp            log_likelihood  (1 − (1−p)^n) ∇ ln p            1/n         (G₁² − ‖μ₁‖²)/p; bound G₁²/p
    raft, raft_pp, reinforce reward          ∇p                              1/n         p G₁² − ‖∇p‖², exactly
    rloo                     reward          ∇p; 0 if n = 1                  1/(n−1)     p(1−p) G²
    dr_grpo                  reward          (n−1)/n · ∇p                    (n−1)/n²    p(1−p) G²
    grpo                     reward          (n−1)/n · E[ŝ_n] (μ₁−μ₀)        (n−1)/n²    G²
    grpo, gspo               sequence_mean   the same, with s/|y| for s      (n−1)/n²    G², with s/|y| for s
    any                      token_mean      depends on all prompts' counts  none

So reward with A = r has the same expectation at every n ≥ 1 and rloo at every n ≥ 2, whatever the rewards are.
Elsewhere unequal counts weigh the prompts: log_likelihood by the odds of any accepted sample, group means by (n−1)/n,
grpo also by a std that small groups see too small and that turns p into 2·arcsin √p as n grows. rloo's variance is
exactly ((n−2) V + 2 W)/(n(n−1)) with V = p(1−p)² G₁² + p²(1−p) G₀² − ‖∇p‖² (CurES, arXiv 2510.01037) and
W = p(1−p) (G₁² + G₀² − 2 μ₁·μ₀)/2 − ‖∇p‖²; both are p(1−p) G² where G₁ = G₀ = G and the means are small. (n−1)/n² is
0 at n = 1, where there is no gradient either, and falls from n = 2 on: it asks for a floor of 3, from where on its
decrements fall too. grpo's is that times the odds of unequal rewards, 1 − p^n − (1−p)^n.

Which samples count is the caller's choice. If it rests on the samples (those of largest variance of rewards, the ones
that ended), the expectations above are no longer met.

Where rollouts are drawn with other weights than are trained, the ratio is that to the trained policy before the step's
first update, π_old, and each token's gain is multiplied by the truncated importance weight min(π_old/π_behaviour, C)
(Yao et al., 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"; truncation: Ionides, 2008).
It corrects the choice of the token, not the odds of the tokens before and after it: with C = ∞ the expected gradient is
that of π_old for answers of one token, and for longer ones its score has mean zero as under π_old.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.training.advantages import (
    Group,
    as_graded,
    centred,
    equal_shares,
    group_statistics,
    leave_one_out,
    positive_part,
    segment_sum,
    standardised,
)

MAX_KL_LOG_RATIO = 10.0  # log π_ref − log π beyond which k3's exponential is clamped


class Tokens(NamedTuple):
    """Whose tokens an array of any shape holds: a row of T for each answer, or answers packed side by side."""

    sample: Int[Array, "..."]  # number of the token's sample, below N where `inside`
    inside: Bool[Array, "..."]  # the token is of a response

    @classmethod
    def of_rows(cls, response_lengths: Int[Array, " N"], max_response: int) -> "Tokens":
        """Of [N, T]: a row for each answer."""
        inside = jnp.arange(max_response) < response_lengths[:, None]
        return cls(jnp.broadcast_to(jnp.arange(len(response_lengths))[:, None], inside.shape), inside)


def token_log_ratio(log_ratio: Float[Array, "..."], tokens: Tokens, num_samples: int) -> Float[Array, "..."]:
    """Each token's own log π − log π_old (arXiv 1707.06347)."""
    return log_ratio


def sequence_log_ratio(log_ratio: Float[Array, "..."], tokens: Tokens, num_samples: int) -> Float[Array, "..."]:
    """The answer's mean log π − log π_old in value, each token's own in gradient (arXiv 2507.18071, 4.1 and 4.3).

    With equal token weights its sum has the gradient of the answer's ratio s = exp(mean); with importance weights each
    token keeps its own.
    """
    sample = jnp.where(tokens.inside, tokens.sample, num_samples).ravel()
    total = segment_sum(log_ratio.ravel(), sample, num_samples)
    number = segment_sum(jnp.ones(sample.shape), sample, num_samples)
    mean = (total / jnp.maximum(number, 1.0))[tokens.sample]
    return log_ratio + jax.lax.stop_gradient(mean - log_ratio)


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """What makes an algorithm; a row of `ALGORITHMS`."""

    advantage: Callable[[Float[Array, " N"], Group], Float[Array, " N"]]
    log_ratio: Callable[[Float[Array, "..."], Tokens, int], Float[Array, "..."]] | None  # None: A · log π
    weighting: str  # unless another is chosen
    source: str


# With a ratio, a token's gain is PPO's clipped one; at the first update its gradient is that of A · log π.
ALGORITHMS = {
    "raft": Algorithm(positive_part, None, "log_likelihood", "arXiv 2304.06767"),
    "raft_pp": Algorithm(positive_part, token_log_ratio, "log_likelihood", "arXiv 2504.11343"),
    "reinforce": Algorithm(as_graded, token_log_ratio, "reward", "Williams, 1992; clipped as in arXiv 2504.11343"),
    "rloo": Algorithm(leave_one_out, token_log_ratio, "reward", "arXiv 2402.14740"),
    "grpo": Algorithm(standardised, token_log_ratio, "sequence_mean", "arXiv 2402.03300"),
    "dr_grpo": Algorithm(centred, token_log_ratio, "reward", "arXiv 2503.20783"),
    "dapo": Algorithm(standardised, token_log_ratio, "token_mean", "arXiv 2503.14476"),  # with clip_high > clip_low
    "gspo": Algorithm(standardised, sequence_log_ratio, "sequence_mean", "arXiv 2507.18071"),  # clips 3e-4 and 4e-4
}


@dataclasses.dataclass(frozen=True)
class Weighting:
    """What the trained samples of a prompt and their tokens weigh; a row of `WEIGHTINGS`."""

    samples: Literal["accepted", "trained", "none"]  # a sample's weight is 1 over how many of these its prompt has
    tokens: Literal["longest", "own", "all"]  # a token's is 1 over T, over its answer's tokens, over all tokens


WEIGHTINGS = {
    "log_likelihood": Weighting("accepted", "longest"),
    "reward": Weighting("trained", "longest"),
    "sequence_mean": Weighting("trained", "own"),
    "token_mean": Weighting("none", "all"),
}


@struct.dataclass
class SampleTerms:
    """What the loss needs of each of N samples besides its log-probabilities; zeros for those not trained on."""

    advantage: Float[Array, " N"]
    weight: Float[Array, " N"]  # mixture_weight · weight of the gain
    kl_weight: Float[Array, " N"]  # mixture_weight · weight of the KL term: of all trained samples, accepted or not
    trained: Bool[Array, " N"]  # in the loss, with or without a gradient


@struct.dataclass
class LossSums:
    """Sums over tokens; `loss` is divided by `Objective.denominator` once, over all micro-batches and devices."""

    loss: Float[Array, ""]
    kl: Float[Array, ""]  # Σ kl estimate over tokens
    clipped: Float[Array, ""]  # tokens whose ratio was clipped
    truncated_weights: Float[Array, ""]  # tokens whose importance weight was truncated
    tokens: Float[Array, ""]  # response tokens of the samples that have a gradient
    mismatch: Float[Array, ""]  # Σ |log π − log π_sampled| over tokens
    max_mismatch: Float[Array, ""]
    entropy: Float[Array, ""] = 0.0  # Σ entropy of the policy over tokens, which the caller fills in

    @classmethod
    def zeros(cls) -> "LossSums":
        return cls(*[jnp.zeros(())] * len(cls.__dataclass_fields__))


@dataclasses.dataclass(frozen=True)
class Objective:
    """An algorithm with its weighting; the fields of `config.objective` under the same names.

    `importance_cap` is None where rollouts are drawn with the weights that are trained: then nothing is corrected.
    `dual_clip` is 0 for none. `mask_truncated` is for the caller, who says which samples are trained on.
    """

    algorithm: str
    weighting: str
    clip_low: float
    clip_high: float
    kl_coefficient: float
    kl_estimator: str
    importance_cap: float | None = None
    dual_clip: float = 0.0
    mask_truncated: bool = False

    @classmethod
    def from_config(cls, config, corrected: bool) -> "Objective":
        """From the section `config.objective`; `auto` is resolved by the algorithm.

        Args:
          config: the section.
          corrected: rollouts are drawn with other weights than are trained.
        """
        fields = {f.name: config[f.name] for f in dataclasses.fields(cls)}
        if config.weighting == "auto":
            fields["weighting"] = ALGORITHMS[config.algorithm].weighting
        if not corrected:
            fields["importance_cap"] = None
        return cls(**fields)

    def sample_terms(
        self,
        rewards: Float[Array, " N"],
        segments: Int[Array, " N"],
        num_segments: int,
        mixture_weight: Float[Array, " N"],
        counted: Bool[Array, " N"],
        trained: Bool[Array, " N"],
    ) -> SampleTerms:
        """Advantages and weights of the samples.

        Rows that are neither counted nor trained are padding; their rewards may hold anything.

        Args:
          rewards: the grader's scores; a positive one is accepted.
          segments: samples of one prompt (drawn in one go) share a number in [0, num_segments); of padding it may be
            `num_segments`.
          num_segments: static.
          mixture_weight: factor of each sample's segment; 1, or λ and 1−λ of pilot and fresh samples.
          counted: samples whose rewards are in their group's mean and std.
          trained: samples in the loss, over which weights are shared out; each of them is counted too.
        """
        weighting = WEIGHTINGS[self.weighting]
        rewards = jnp.where(counted, rewards, 0.0)
        group = group_statistics(rewards, segments, num_segments, counted)
        advantage = jnp.where(trained, ALGORITHMS[self.algorithm].advantage(rewards, group), 0.0)
        if weighting.samples == "none":
            return SampleTerms(advantage, mixture_weight * trained, mixture_weight * trained, trained)
        kl_weight = weight = mixture_weight * equal_shares(trained, segments, num_segments)
        if weighting.samples == "accepted":
            weight = mixture_weight * equal_shares(trained & (rewards > 0), segments, num_segments)
        return SampleTerms(advantage, weight, kl_weight, trained)

    def has_gradient(self, terms: SampleTerms) -> Bool[Array, "..."]:
        """Which samples change the loss; the others (rejected ones, say) need no forward and backward pass."""
        return (terms.weight * terms.advantage != 0) | (self.kl_coefficient * terms.kl_weight != 0)

    def denominator(
        self,
        terms: SampleTerms,
        response_lengths: Int[Array, " B"],
        max_response: int,
        prompts_per_sample: Float[Array, ""] | float,
    ) -> Float[Array, ""]:
        """The share that some samples bring to the denominator, whether they have a gradient or not.

        Args:
          terms: the samples' rows of `sample_terms`.
          response_lengths: of the samples.
          max_response: T.
          prompts_per_sample: prompts over trained samples of the whole step.
        """
        tokens = WEIGHTINGS[self.weighting].tokens
        if tokens == "all":
            return (terms.kl_weight * response_lengths).sum()
        prompts = terms.trained.sum() * jnp.float32(prompts_per_sample)
        return prompts if tokens == "own" else prompts * max_response

    def loss_sums(
        self,
        logprobs: Float[Array, "..."],
        behaviour_logprobs: Float[Array, "..."],
        old_logprobs: Float[Array, "..."] | None,
        reference_logprobs: Float[Array, "..."] | None,
        tokens: Tokens,
        terms: SampleTerms,
        response_lengths: Int[Array, " N"],
    ) -> LossSums:
        """The loss of some tokens as sums; log-probabilities outside of responses may hold anything.

        Args:
          logprobs: log π of the tokens, differentiable.
          behaviour_logprobs: log π of the policy that sampled them.
          old_logprobs: log π before the step's first update; None without an `importance_cap`, as that policy sampled.
          reference_logprobs: of the reference policy; None without a KL penalty.
          tokens: whose they are; a sample's tokens are all here, or none of them.
          terms: of the N samples.
          response_lengths: of the N samples.
        """
        samples, sample = response_lengths.shape[0], tokens.sample

        def of_tokens(values: Array) -> Array:
            return jnp.asarray(values).at[sample].get(mode="fill", fill_value=0)

        mask = tokens.inside & of_tokens(self.has_gradient(terms))

        def inside(x: Float[Array, "..."]) -> Float[Array, "..."]:
            return jnp.where(mask, x, 0.0)

        logprobs, behaviour_logprobs = inside(logprobs), inside(behaviour_logprobs)
        token_weight, truncated = jnp.ones_like(logprobs), jnp.zeros_like(mask)
        if WEIGHTINGS[self.weighting].tokens == "own":
            token_weight /= of_tokens(jnp.maximum(response_lengths, 1)).clip(1)
        if old_logprobs is None:
            old_logprobs = behaviour_logprobs
        else:
            old_logprobs = inside(old_logprobs)
            correction, truncated = importance_weights(old_logprobs, behaviour_logprobs, mask, self.importance_cap)
            token_weight *= correction

        advantage, to_ratio = of_tokens(terms.advantage), ALGORITHMS[self.algorithm].log_ratio
        gain, clipped = logprobs * advantage, jnp.zeros_like(mask)
        if to_ratio is not None:
            log_ratio = to_ratio(logprobs - old_logprobs, Tokens(sample, mask), samples)
            gain, clipped = clipped_gain(log_ratio, advantage, self.clip_low, self.clip_high, self.dual_clip)
        loss = -(of_tokens(terms.weight) * token_weight * inside(gain)).sum()

        kl = jnp.zeros(())
        if reference_logprobs is not None:
            kl_tokens = inside(kl_estimate(logprobs, reference_logprobs, self.kl_estimator))
            kl = kl_tokens.sum()
            loss += self.kl_coefficient * (of_tokens(terms.kl_weight) * token_weight * kl_tokens).sum()

        mismatch = jax.lax.stop_gradient(jnp.abs(logprobs - behaviour_logprobs))
        return LossSums(
            loss=loss,
            kl=jax.lax.stop_gradient(kl),
            clipped=(clipped & mask).sum().astype(jnp.float32),
            truncated_weights=truncated.sum().astype(jnp.float32),
            tokens=mask.sum().astype(jnp.float32),
            mismatch=mismatch.sum(),
            max_mismatch=mismatch.max(),
        )


def clipped_gain(
    log_ratio: Float[Array, "..."], advantage: Float[Array, "..."], low: float, high: float, dual: float = 0.0
) -> tuple[Float[Array, "..."], Bool[Array, "..."]]:
    """PPO's g = min(ρA, clip(ρ, 1−low, 1+high)·A) and where a clip acts (arXiv 1707.06347, eq. 7).

    With `dual` = c > 0 it is max(g, cA) where A < 0, so that a token that became likelier although its answer was worse
    than the others pulls no more than c-fold (arXiv 1912.09729, which has c = 3).
    """
    ratio = jnp.exp(log_ratio)
    free, bounded = ratio * advantage, jnp.clip(ratio, 1.0 - low, 1.0 + high) * advantage
    gain, clipped = jnp.minimum(free, bounded), bounded < free
    if dual:
        least = jnp.where(advantage < 0, dual * advantage, -jnp.inf)
        gain, clipped = jnp.maximum(gain, least), clipped | (gain < least)
    return gain, clipped


def importance_weights(
    old_logprobs: Float[Array, "..."], behaviour_logprobs: Float[Array, "..."], mask: Bool[Array, "..."], cap: float
) -> tuple[Float[Array, "..."], Bool[Array, "..."]]:
    """min(π_old/π_behaviour, cap) of the tokens in the mask and where the cap acts; a constant to the gradient."""
    log_ratio = jax.lax.stop_gradient(jnp.where(mask, old_logprobs - behaviour_logprobs, 0.0))
    return jnp.exp(jnp.minimum(log_ratio, math.log(cap))), mask & (log_ratio > math.log(cap))


def kl_estimate(
    logprobs: Float[Array, "..."], reference_logprobs: Float[Array, "..."], estimator: str
) -> Float[Array, "..."]:
    """Estimates of KL(π‖π_ref) a token, d = log π_ref − log π: k1 = −d, k2 = d²/2, k3 = e^d − d − 1.

    From joschu.net/blog/kl-approx.html. As a loss, only k2's gradient is that of the KL in expectation under π; k1's
    has mean zero, k3's is that of the reverse direction.
    """
    d = jnp.clip(reference_logprobs - logprobs, -MAX_KL_LOG_RATIO, MAX_KL_LOG_RATIO)
    return {"k1": lambda: -d, "k2": lambda: d**2 / 2, "k3": lambda: jnp.exp(d) - d - 1.0}[estimator]()
