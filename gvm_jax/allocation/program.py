"""The variance program: how many samples of a fixed budget each prompt gets.

    minimise  Σ_i a_i / n_i   subject to   Σ_i n_i = budget,   minimum_i ≤ n_i ≤ maximum_i,   n_i integer

Its real-valued solution without bounds is n_i ∝ √a_i (arXiv 2505.02391, Proposition 1). Here it is solved in
integers, with bounds, exactly, and inside a jitted step.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

_LARGEST = np.finfo(np.float32).max
_SMALLEST = np.finfo(np.float32).tiny  # devices flush what is smaller to zero
_SMALLEST_BITS = int(_SMALLEST.view(np.int32))
_INFINITY_BITS = int(np.float32(np.inf).view(np.int32))
_EXPONENT_BITS = _INFINITY_BITS  # as a mask
_TOP_EXPONENT_BITS = _INFINITY_BITS - 2**23
_MANY = 2**30  # sums saturate here, below int32's overflow


def allocate(
    coefficients: Float[Array, " m"], budget: ArrayLike, minimum: ArrayLike, maximum: ArrayLike
) -> Int[Array, " m"]:
    """Counts that minimise Σ a_i/n_i, exactly, with sum `budget` and `minimum` ≤ n_i ≤ `maximum`.

    One more sample for a prompt that has n lowers the objective by a/n - a/(n+1) = a/(n(n+1)). The gains of a
    prompt fall with n (each term is convex) and prompts share nothing but the budget, so the optimum is the
    `budget` largest gains above the floors: exchanging a taken gain for one left over can only raise the
    objective. Those are the gains above one price. The price is found by bisection over the bit patterns of
    positive float32 numbers, whose order is the numbers' order: 32 halvings reach neighbouring floats, so
    what is then still undecided are equal gains, and they go to the earliest positions. O(32 m) work,
    independent of the budget.

    A coefficient of zero gains nothing: its prompt keeps its floor until every prompt with a positive
    coefficient is at its cap; what is left is then shared so that counts are as level as the bounds allow.
    NaN and negative coefficients count as zero, infinite ones as the largest float32; below about 1e-60 of
    the largest a gain may count as zero. A prompt with a > 0 and n = 0 has an infinite term, so its first
    sample comes before all second ones; when the budget cannot give one to each, the objective is infinite
    and the earliest positions get theirs.

    Args:
        coefficients: a_i, the variance that one sample of prompt i leaves; any positive scale.
        budget: samples to hand out; an int or a traced int32 scalar, up to 2**22. A budget outside
            [Σ minimum, Σ maximum] is moved to the nearer end, since a jitted function cannot raise: call
            `check_bounds` on the host first.
        minimum: floor of each prompt, one for all or one each; where it is above the maximum, that holds.
        maximum: cap of each prompt, one for all or one each; 0 masks a prompt out.

    Returns:
        n_i, int32, with sum `budget`. Optimal up to gains that differ by float32 rounding (1e-7, relative).
    """
    coefficients = jnp.asarray(coefficients, jnp.float32)
    lower, upper, budget = _feasible(coefficients.shape, budget, minimum, maximum)
    scaled = _raise_exponents(_clean(coefficients))

    # One integer key orders all samples. From zero up it is the bit pattern of a price, at which prompts buy
    # what gains as much. Below zero, all gains being bought, it is minus a level that counts are filled to.
    def counts_at(key: Int[Array, ""]) -> Int[Array, " m"]:
        price = jax.lax.bitcast_convert_type(jnp.clip(key, _SMALLEST_BITS, _INFINITY_BITS), jnp.float32)
        return jnp.clip(jnp.maximum(_samples_worth(scaled, price, upper), -key), lower, upper)

    def halve(_, bracket: tuple[Int[Array, ""], Int[Array, ""]]) -> tuple[Int[Array, ""], Int[Array, ""]]:
        low, high = bracket
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # the mean's floor, without overflow
        affordable = _total(counts_at(middle)) <= budget
        return jnp.where(affordable, low, middle), jnp.where(affordable, middle, high)

    # At infinity all are at their floor, at the highest level all are at their cap.
    bracket = (-jnp.max(upper, initial=0), jnp.int32(_INFINITY_BITS))
    _, high = jax.lax.fori_loop(0, 32, halve, bracket)
    counts = counts_at(high)
    tied = counts_at(high - 1) - counts
    earlier = jnp.cumsum(tied, dtype=jnp.int32) - tied
    return counts + jnp.clip(budget - _total(counts) - earlier, 0, tied)


def check_bounds(num_prompts: int, budget: int, minimum: ArrayLike, maximum: ArrayLike) -> None:
    """Raises ValueError, on the host, where `allocate` could not keep both the budget and the bounds.

    Args:
        num_prompts: prompts the budget is for.
        budget: samples to hand out.
        minimum: floor of each prompt, one for all or one each.
        maximum: cap of each prompt, one for all or one each.
    """
    lower, upper = (np.broadcast_to(np.asarray(bound, np.int64), num_prompts) for bound in (minimum, maximum))
    crossed = np.flatnonzero((lower < 0) | (lower > upper))
    if crossed.size:
        i = crossed[0]
        raise ValueError(
            f"prompt {i} has minimum = {lower[i]} and maximum = {upper[i]}, not 0 <= minimum <= maximum: "
            "lower the minimum (config.allocation.min_samples) or raise the maximum "
            "(config.allocation.max_samples)"
        )
    if budget < lower.sum():
        raise ValueError(
            f"budget = {budget} is below {lower.sum()}, the sum of the minimum over {num_prompts} prompts: "
            "raise the budget (config.rollouts_per_step), or lower the minimum "
            "(config.allocation.min_samples) or the number of prompts (config.prompts_per_step)"
        )
    if budget > upper.sum():
        raise ValueError(
            f"budget = {budget} is above {upper.sum()}, the sum of the maximum over {num_prompts} prompts: "
            "lower the budget (config.rollouts_per_step), or raise the maximum "
            "(config.allocation.max_samples) or the number of prompts (config.prompts_per_step)"
        )


def variance_ratio(
    coefficients: Float[Array, " m"], counts: Int[Array, " m"], valid: Bool[Array, " m"]
) -> Float[Array, ""]:
    """Variance of equal counts over variance of `counts`, (Σ a_i/n̄) / (Σ a_i/n_i), over the valid prompts.

    Above 1 the allocation helps; n̄ is the mean count, not rounded. It vanishes where a prompt with a > 0 has
    no sample, and is 1 where there is nothing to compare.
    """
    coefficients = _relative(coefficients, valid)
    equal_counts = jnp.sum(counts, where=valid) / jnp.maximum(jnp.sum(valid), 1)
    equal = jnp.sum(coefficients) / jnp.maximum(equal_counts, _SMALLEST)
    chosen = jnp.sum(coefficients / jnp.maximum(counts, _SMALLEST))
    return jnp.where((jnp.sum(coefficients) > 0) & (equal_counts > 0), equal / chosen, 1.0)


def ideal_variance_ratio(coefficients: Float[Array, " m"], valid: Bool[Array, " m"]) -> Float[Array, ""]:
    """The best `variance_ratio` that real-valued counts without bounds reach, m Σa / (Σ√a)² = 1 + CV²(√a)."""
    coefficients = _relative(coefficients, valid)
    root_sum = jnp.sum(jnp.sqrt(coefficients))
    ratio = jnp.sum(valid) * jnp.sum(coefficients) / jnp.maximum(root_sum, _SMALLEST) ** 2
    return jnp.where(root_sum > 0, ratio, 1.0)


def _samples_worth(
    coefficients: Float[Array, " m"], price: Float[Array, ""], upper: Int[Array, " m"]
) -> Int[Array, " m"]:
    """The samples of each prompt whose gain is at least `price`; the caller clips what exceeds `upper`."""
    # The n-th gains a/((n-1)n): solve the quadratic, then let the gains themselves correct its rounding.
    root = 0.5 + jnp.sqrt(0.25 + coefficients / price)
    samples = jnp.minimum(root, upper.astype(jnp.float32)).astype(jnp.int32)
    one_more = _gain(coefficients, samples) >= price
    one_less = _gain(coefficients, samples - 1) < price
    return samples + one_more - one_less


def _gain(coefficients: Float[Array, " m"], samples: Int[Array, " m"]) -> Float[Array, " m"]:
    """What one more sample lowers the objective by, a/(n(n+1)); the largest float for the first sample."""
    product = samples.astype(jnp.float32) * (samples + 1).astype(jnp.float32)
    return jnp.where((samples == 0) & (coefficients > 0), _LARGEST, coefficients / jnp.maximum(product, 1))


def _feasible(
    shape: tuple[int, ...], budget: ArrayLike, minimum: ArrayLike, maximum: ArrayLike
) -> tuple[Int[Array, " m"], Int[Array, " m"], Int[Array, ""]]:
    upper = jnp.maximum(jnp.broadcast_to(jnp.asarray(maximum, jnp.int32), shape), 0)
    lower = jnp.clip(jnp.asarray(minimum, jnp.int32), 0, upper)
    budget = jnp.clip(jnp.asarray(budget, jnp.int32), _total(lower), _total(upper))
    return lower, jnp.minimum(upper, lower + budget - _total(lower)), budget


def _total(counts: Int[Array, " m"]) -> Int[Array, ""]:
    """The sum, or `_MANY` where it is above: a million prompts at a cap of a million overflow int32."""
    return jnp.where(jnp.sum(counts.astype(jnp.float32)) > _MANY, _MANY, jnp.sum(counts, dtype=jnp.int32))


def _clean(coefficients: Float[Array, " m"]) -> Float[Array, " m"]:
    return jnp.where(coefficients >= _SMALLEST, jnp.minimum(coefficients, _LARGEST), 0)  # NaN >= x is false


def _raise_exponents(coefficients: Float[Array, " m"]) -> Float[Array, " m"]:
    """Multiplies by the power of two that lifts the largest to float32's top, so that small gains stay
    normal.

    It adds to the exponents' bits, which is exact; the power of two itself may be beyond float32.
    """
    bits = jax.lax.bitcast_convert_type(coefficients, jnp.int32)
    lift = _TOP_EXPONENT_BITS - (jnp.max(bits, initial=0) & _EXPONENT_BITS)
    return jax.lax.bitcast_convert_type(jnp.where(bits > 0, bits + lift, 0), jnp.float32)


def _relative(coefficients: Float[Array, " m"], valid: Bool[Array, " m"]) -> Float[Array, " m"]:
    """Coefficients over the largest valid one, 0 where not valid: sums of them cannot overflow."""
    coefficients = jnp.where(valid, _clean(coefficients), 0)
    return coefficients / jnp.maximum(jnp.max(coefficients, initial=0), _SMALLEST)
