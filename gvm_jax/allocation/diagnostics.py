"""Diagnostics of an allocation: its estimates of the prompts against the samples that they then gave."""

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.allocation import solver, statistics
from gvm_jax.allocation.allocator import AllocationInfo, Allocator
from gvm_jax.allocation.gvm import Gvm
from gvm_jax.allocation.statistics import PromptStatistics, Sums

_SMALLEST = np.finfo(np.float32).tiny


@struct.dataclass
class Diagnostics:
    """Scalars of one step's fresh samples; NaN where there is nothing to compare."""

    brier: Float[Array, ""]  # mean (p - accepted)² over samples, with the estimated p of their prompt
    brier_constant: Float[Array, ""]  # the same with the step's accept rate in place of every p
    norm_correlation: Float[Array, ""]  # of log estimated with log measured RMS gradient norm, over prompts
    mean_age: Float[Array, ""]  # steps since the last visit, over prompts visited before
    new_prompts: Float[Array, ""]  # share of prompts never visited before
    floor_share: Float[Array, ""]  # share of the samples that went to prompts at their floor
    cap_share: Float[Array, ""]  # share that went to prompts at their cap
    measured_gain: Float[Array, ""]  # as `variance_ratio`, with the estimates that this step's samples lead to


def diagnose(
    allocator: Allocator,
    info: AllocationInfo,
    before: PromptStatistics,
    after: PromptStatistics,
    prompt_ids: Int[Array, " m"],
    visit: Sums,
    step: ArrayLike,
    budget: ArrayLike,
) -> Diagnostics:
    """Compares estimates with a visit. Pure; runs inside the jitted step and costs O(m).

    `measured_gain` is the bound Σ G²/(p·n) at equal counts over that at the chosen ones, with p and G as estimated
    after the visit. Below 1 equal counts would have done better.

    Args:
        allocator: of the step.
        info: the estimates that the counts were computed from.
        before: the statistics that these come from.
        after: the statistics with the visit.
        prompt_ids: of the batch.
        visit: the sums of their fresh samples.
        step: of the visit.
        budget: samples that were handed out, or the most there could be.
    """
    counts = visit.trials.astype(jnp.int32)
    drawn, samples = counts > 0, jnp.maximum(visit.trials.sum(), 1)
    overall = visit.successes.sum() / samples

    def brier(p):  # Σ over a prompt's samples, k of n accepted: k(1-p)² + (n-k)p²
        return (visit.successes * (1 - p) ** 2 + (visit.trials - visit.successes) * p**2).sum() / samples

    measured = visit.norm_count > 0
    realised = jnp.sqrt(visit.squared_norm_sum / jnp.where(measured, visit.norm_count, 1))
    ages = statistics.age(before, prompt_ids, step)
    estimates = allocator.estimate(after, prompt_ids)
    bound = Gvm(alpha=0.0).coefficients(estimates.accept_rate, estimates.gradient_norm)
    cap = allocator.max_samples or budget
    return Diagnostics(
        brier=brier(info.accept_rate),
        brier_constant=brier(overall),
        norm_correlation=_correlation(info.gradient_norm, realised, measured),
        mean_age=jnp.nanmean(ages),
        new_prompts=jnp.isnan(ages).mean(),
        floor_share=(counts * (counts <= allocator.min_samples)).sum() / samples,
        cap_share=(counts * (counts >= cap)).sum() / samples,
        measured_gain=solver.variance_ratio(bound, counts, where=drawn),
    )


def _correlation(estimated: Float[Array, " m"], realised: Float[Array, " m"], where: Bool[Array, " m"]):
    """Pearson's correlation of the logarithms; NaN of fewer than 3 prompts or of equal values."""
    x, y = (jnp.log(jnp.maximum(jnp.where(where, v, 1), _SMALLEST)) for v in (estimated, realised))
    x, y = (jnp.where(where, v - jnp.mean(v, where=where), 0) for v in (x, y))
    scale = jnp.sqrt((x**2).sum() * (y**2).sum())
    return jnp.where((where.sum() >= 3) & (scale > 1e-12), (x * y).sum() / jnp.maximum(scale, _SMALLEST), jnp.nan)


def advice(recent: dict[str, float]) -> str | None:
    """The likely cause, in words, where an allocation does worse than equal counts would; None where it does not.

    Args:
        recent: means over some steps of `Diagnostics`' fields, by name.
    """
    if not recent["measured_gain"] < 0.97:
        return None
    if recent["cap_share"] > 0.5:
        cause = "most samples go to prompts at allocation.max_samples: raise it"
    elif recent["brier"] >= recent["brier_constant"]:
        cause = (
            "accept rates are not known better than by their mean (statistics are "
            f"{recent['mean_age']:.0f} steps old): raise allocation.accept_rate_prior, lower "
            "allocation.decay, or use allocation.mode = pilot"
        )
    elif recent["norm_correlation"] < 0.2:
        cause = (
            "gradient norms are mostly noise: raise allocation.gradient_norm_prior, or leave them out "
            "(allocation.strategy = gvm_rates)"
        )
    else:
        cause = (
            "accept rates are noisy where they are low: raise allocation.accept_rate_prior or allocation.min_samples"
        )
    return f"counts do worse than equal ones would (measured_gain {recent['measured_gain']:.2f}); {cause}"
