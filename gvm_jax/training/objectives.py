"""The objectives: what each sampled token weighs in the loss. Pure; knows no model.

The loss of a step is a sum over samples j of prompts i,

    L = Σ_j mix_j · weight_j · Σ_t −term(ratio_jt, A_j) / denominator,

with the advantage A_j of the algorithm, the weight_j of the objective and the clipped importance ratio of each token.
A weighting states the objective:

    log_likelihood  1/k_i on the k_i accepted samples: Σ_i ln p_i (arXiv 2505.02391, Algorithm 1, self-normalised).
                    A prompt without an accepted sample adds nothing: in expectation 1 − (1−p_i)^n_i of the gradient
    reward          1/n_i: the mean over a prompt's samples, Σ_i E[A]; with A = r unbiased at every n_i
    token_mean      1, divided by the number of response tokens: long answers and prompts with many samples weigh
                    more, so the counts change the objective (the reference implementation's behaviour)

The first two divide token sums by the constant `max_response`, which changes the scale and no direction.

Where rollouts are drawn with other weights than are trained, the ratio is that to the trained policy before the step's
first update, π_old, and each token's term is multiplied by the truncated importance weight min(π_old/π_behaviour, C)
(Yao et al., 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"; truncation: Ionides, 2008).
It corrects the choice of the token, not the odds of the tokens before and after it: with C = ∞ the expected gradient is
that of π_old for answers of one token, and for longer ones its score has mean zero as under π_old.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

ALGORITHMS = ("raft", "raft_pp", "grpo")
DEFAULT_WEIGHTING = {"raft": "log_likelihood", "raft_pp": "log_likelihood", "grpo": "reward"}
MAX_KL_LOG_RATIO = 10.0  # log π_ref − log π beyond which k3's exponential is clamped


@struct.dataclass
class SampleTerms:
    """What the loss needs of each of N samples besides its log-probabilities."""

    advantage: Float[Array, " N"]
    weight: Float[Array, " N"]  # mix · weight of the advantage term
    kl_weight: Float[Array, " N"]  # mix · weight of the KL term: over all samples of a prompt, accepted or not


@struct.dataclass
class LossSums:
    """Sums over samples; `loss` is divided by `denominator` once, over all micro-batches and devices."""

    denominator: Float[Array, ""]
    loss: Float[Array, ""]
    kl: Float[Array, ""]  # Σ kl estimate over tokens
    clipped: Float[Array, ""]  # tokens whose ratio was clipped
    truncated_weights: Float[Array, ""]  # tokens whose importance weight was truncated
    tokens: Float[Array, ""]  # response tokens of the samples that have a gradient
    mismatch: Float[Array, ""]  # Σ |log π − log π_sampled| over tokens
    max_mismatch: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Objective:
    """An algorithm with its weighting; the fields of `config.objective` under the same names.

    `importance_cap` is None where rollouts are drawn with the weights that are trained: then nothing is corrected.
    """

    algorithm: str
    weighting: str
    clip_low: float
    clip_high: float
    kl_coefficient: float
    kl_estimator: str
    importance_cap: float | None = None

    @classmethod
    def from_config(cls, config, corrected: bool) -> "Objective":
        """From the section `config.objective`; `auto` is resolved by the algorithm.

        Args:
          config: the section.
          corrected: rollouts are drawn with other weights than are trained.
        """
        fields = {f.name: config[f.name] for f in dataclasses.fields(cls)}
        if config.weighting == "auto":
            fields["weighting"] = DEFAULT_WEIGHTING[config.algorithm]
        if not corrected:
            fields["importance_cap"] = None
        return cls(**fields)

    def sample_terms(
        self, rewards: Float[Array, " N"], segments: Int[Array, " N"], num_segments: int, mix: Float[Array, " N"]
    ) -> SampleTerms:
        """Advantages and weights of the samples.

        Args:
          rewards: the grader's scores; a positive one is accepted.
          segments: samples of one prompt (drawn in one go) share a number in [0, num_segments).
          num_segments: static.
          mix: factor of each sample's segment; 1, or λ and 1−λ of pilot and fresh samples.
        """
        accepted = (rewards > 0).astype(jnp.float32)
        per_sample = 1.0 / segment_sum(jnp.ones_like(rewards), segments, num_segments)[segments]
        if self.algorithm == "grpo":
            advantage = group_advantages(rewards, segments, num_segments)
        else:
            advantage = jnp.maximum(rewards, 0.0)
        if self.weighting == "token_mean":
            return SampleTerms(advantage, mix, mix)
        weight = per_sample
        if self.weighting == "log_likelihood":
            weight = accepted / jnp.maximum(segment_sum(accepted, segments, num_segments), 1.0)[segments]
        return SampleTerms(advantage, mix * weight, mix * per_sample)

    def has_gradient(self, terms: SampleTerms) -> Bool[Array, "..."]:
        """Which samples change the loss; the others (rejected ones, say) need no forward and backward pass."""
        return (terms.weight * terms.advantage != 0) | (self.kl_coefficient * terms.kl_weight != 0)

    def denominator(
        self, terms: SampleTerms, response_lengths: Int[Array, " B"], max_response: int, prompts_per_sample: float
    ) -> Float[Array, ""]:
        """The share that some samples bring to the denominator, whether they have a gradient or not.

        Args:
          terms: the samples' rows of `sample_terms`.
          response_lengths: of the samples.
          max_response: T.
          prompts_per_sample: prompts over samples of the whole step.
        """
        if self.weighting == "token_mean":
            return (terms.kl_weight * response_lengths).sum()
        return jnp.float32(response_lengths.shape[0] * prompts_per_sample * max_response)

    def loss_sums(
        self,
        logprobs: Float[Array, "B T"],
        behaviour_logprobs: Float[Array, "B T"],
        old_logprobs: Float[Array, "B T"] | None,
        reference_logprobs: Float[Array, "B T"] | None,
        terms: SampleTerms,
        response_lengths: Int[Array, " B"],
        denominator: Float[Array, ""],
    ) -> LossSums:
        """The loss of some samples as sums.

        Args:
          logprobs: log π of the response tokens, differentiable; T = max_response.
          behaviour_logprobs: log π of the policy that sampled them.
          old_logprobs: log π before the step's first update; None without an `importance_cap`, as that policy sampled.
          reference_logprobs: of the reference policy; None without a KL penalty.
          terms: the samples' rows of `sample_terms`.
          response_lengths: tokens of each response.
          denominator: the samples' share of it, passed through.
        """
        mask = (jnp.arange(logprobs.shape[1]) < response_lengths[:, None]) & self.has_gradient(terms)[:, None]
        advantage = terms.advantage[:, None]
        weight, kl_weight, truncated = terms.weight[:, None], terms.kl_weight[:, None], jnp.zeros_like(mask)
        if old_logprobs is None:
            old_logprobs = behaviour_logprobs
        else:
            correction, truncated = importance_weights(old_logprobs, behaviour_logprobs, mask, self.importance_cap)
            weight, kl_weight = weight * correction, kl_weight * correction
        gain, clipped = logprobs * advantage, jnp.zeros_like(mask)
        if self.algorithm != "raft":
            log_ratio = jnp.where(mask, logprobs - old_logprobs, 0.0)
            gain, clipped = clipped_gain(log_ratio, advantage, self.clip_low, self.clip_high)
        loss = -(weight * jnp.where(mask, gain, 0.0)).sum()

        kl = jnp.zeros(())
        if reference_logprobs is not None:
            kl_tokens = jnp.where(mask, kl_estimate(logprobs, reference_logprobs, self.kl_estimator), 0.0)
            kl = kl_tokens.sum()
            loss += self.kl_coefficient * (kl_weight * kl_tokens).sum()

        mismatch = jax.lax.stop_gradient(jnp.abs(jnp.where(mask, logprobs - behaviour_logprobs, 0.0)))
        return LossSums(
            denominator=denominator,
            loss=loss,
            kl=jax.lax.stop_gradient(kl),
            clipped=(clipped & mask).sum().astype(jnp.float32),
            truncated_weights=truncated.sum().astype(jnp.float32),
            tokens=mask.sum().astype(jnp.float32),
            mismatch=mismatch.sum(),
            max_mismatch=mismatch.max(),
        )


def segment_sum(values: Float[Array, " N"], segments: Int[Array, " N"], num_segments: int) -> Float[Array, " S"]:
    """Sum of the values of each segment."""
    return jax.ops.segment_sum(values, segments, num_segments)


def group_advantages(rewards: Float[Array, " N"], segments: Int[Array, " N"], num_segments: int) -> Float[Array, " N"]:
    """GRPO's (r − mean)/(std + 1e-6) within a segment, std with n − 1 (arXiv 2402.03300, section 4.1.2).

    0 for a segment of one sample or of equal rewards: neither says which sample was better. The sample is in its own
    baseline and the std is the segment's, so the expected gradient grows with the number of samples.
    """
    count = segment_sum(jnp.ones_like(rewards), segments, num_segments)
    mean = segment_sum(rewards, segments, num_segments) / jnp.maximum(count, 1.0)
    centred = rewards - mean[segments]
    variance = segment_sum(centred**2, segments, num_segments) / jnp.maximum(count - 1.0, 1.0)
    return centred / (jnp.sqrt(variance) + 1e-6)[segments]


def clipped_gain(
    log_ratio: Float[Array, "B T"], advantage: Float[Array, "B 1"], low: float, high: float
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """PPO's min(ρA, clip(ρ, 1−low, 1+high)·A) and where the clip acts (arXiv 1707.06347, eq. 7)."""
    ratio = jnp.exp(log_ratio)
    free, bounded = ratio * advantage, jnp.clip(ratio, 1.0 - low, 1.0 + high) * advantage
    return jnp.minimum(free, bounded), bounded < free


def importance_weights(
    old_logprobs: Float[Array, "B T"], behaviour_logprobs: Float[Array, "B T"], mask: Bool[Array, "B T"], cap: float
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """min(π_old/π_behaviour, cap) of the tokens in the mask and where the cap acts; a constant to the gradient."""
    log_ratio = jax.lax.stop_gradient(jnp.where(mask, old_logprobs - behaviour_logprobs, 0.0))
    return jnp.exp(jnp.minimum(log_ratio, math.log(cap))), mask & (log_ratio > math.log(cap))


def kl_estimate(
    logprobs: Float[Array, "B T"], reference_logprobs: Float[Array, "B T"], estimator: str
) -> Float[Array, "B T"]:
    """Estimates of KL(π‖π_ref) a token, d = log π_ref − log π: k1 = −d, k2 = d²/2, k3 = e^d − d − 1.

    From joschu.net/blog/kl-approx.html. As a loss, only k2's gradient is that of the KL in expectation under π; k1's
    has mean zero, k3's is that of the reverse direction.
    """
    d = jnp.clip(reference_logprobs - logprobs, -MAX_KL_LOG_RATIO, MAX_KL_LOG_RATIO)
    return {"k1": lambda: -d, "k2": lambda: d**2 / 2, "k3": lambda: jnp.exp(d) - d - 1.0}[estimator]()
