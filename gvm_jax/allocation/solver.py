"""The variance program: how many samples of a fixed budget each prompt gets.

    minimise  Σ_i f_i(n_i)   subject to   Σ_i n_i = budget (or Σ_i c_i n_i ≤ budget),
                                          minimum_i ≤ n_i ≤ maximum_i,   n_i integer

for any convex f_i, declared by its gains f_i(n) - f_i(n+1). For f = a/n its real-valued solution without bounds is
n_i ∝ √a_i (arXiv 2505.02391, Proposition 1). Here it is solved in integers, with bounds, exactly, and inside a jitted
step.

Three terms f = a·φ(n) cover the estimators that the strategies reduce the variance of:

    term                φ            φ(n) - φ(n+1)               convex for
    inverse             1/n          1/(n(n+1))                  n ≥ 1     mean over n samples
    inverse_less_one    1/(n-1)      1/(n(n-1))                  n ≥ 2     the mean of the others as a baseline
    group_mean          (n-1)/n²     (n²-n-1)/(n²(n+1)²)         n ≥ 3     the group's mean as a baseline

(n-1)/n² has the second derivative 2(n-3)/n⁴. It is 0 at one sample and 1/4 at two: without a floor it would reward
groups that carry no gradient.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

_LARGEST = np.finfo(np.float32).max
_SMALLEST = np.finfo(np.float32).tiny  # devices flush what is smaller to zero
_SMALLEST_BITS = int(_SMALLEST.view(np.int32))
_INFINITY_BITS = int(np.float32(np.inf).view(np.int32))
_ONE_BITS = int(np.float32(1).view(np.int32))
_EXPONENT_BITS = _INFINITY_BITS  # as a mask
_TOP_EXPONENT_BITS = _INFINITY_BITS - 2**23
_MANY = 2**30 - 1  # counts and sums saturate here: two of them still fit int32

MarginalGain = Callable[[Int[Array, "*m"]], Float[Array, "*m"]]
"""What one more sample of each prompt that has n lowers the objective by, f_i(n) - f_i(n+1).

Not negative and, from the floor on, not increasing in n. It is called inside loops, with counts [m] or one scalar for
all prompts, and must be elementwise. NaN and what is below the smallest normal float32 count as zero; the largest
float32 and infinity count as infinite. Only the order of the gains of one call matters, so their scale is free.
"""


@dataclasses.dataclass(frozen=True)
class Term:
    """A term a·φ(n) of the objective. `term(coefficients)` is the `MarginalGain` of Σ a_i φ(n_i).

    Coefficients a ≥ 0 may have any scale: they are multiplied by the power of two that brings the largest to float32's
    top, so gains of different calls are not comparable. NaN and negative ones count as zero (`check_coefficients`
    refuses them on the host), infinite ones as the largest float32. Below about 1e-60 of the largest a gain may count
    as zero.

    Below `least` samples φ is infinite or not convex. There the gain of a prompt with a > 0 is the largest float32: it
    gets its first `least` samples before any other prompt gets more than those, and a program whose budget allows that
    is exact.
    """

    least: int  # φ is convex from here on
    value: Callable[[Array], Array]  # φ(n), of real n too; very large where it is infinite
    marginal_gain: Callable[[Array, Array], Array]  # a·(φ(n) - φ(n+1)) of a and n, without overflow for the largest a

    def __call__(self, coefficients: Float[Array, " m"]) -> MarginalGain:
        """The gains a·(φ(n) - φ(n+1)), a pytree: jitted functions may take it as an argument."""
        return jax.tree_util.Partial(self._marginal_gain_or_largest, _raise_exponents(_clean(coefficients)))

    def _marginal_gain_or_largest(self, scaled: Float[Array, " m"], samples: Int[Array, "*m"]) -> Float[Array, " m"]:
        marginal_gain = self.marginal_gain(scaled, jnp.maximum(samples, self.least).astype(jnp.float32))
        return jnp.where((samples < self.least) & (scaled > 0), _LARGEST, marginal_gain)


def _group_mean_gain(a: Array, n: Array) -> Array:
    # Not a / (product² / (n²-n-1)), which compilers turn into a·(n²-n-1) / product²: that overflows.
    product = n * (n + 1)
    return a / product * (1 - (2 * n + 1) / product)


inverse = Term(
    least=1,
    value=lambda n: 1 / jnp.maximum(n, _SMALLEST),
    marginal_gain=lambda a, n: a / (n * (n + 1)),
)
inverse_less_one = Term(
    least=2,
    value=lambda n: 1 / jnp.maximum(n - 1, _SMALLEST),
    marginal_gain=lambda a, n: a / (n * (n - 1)),
)
group_mean = Term(
    least=3,
    value=lambda n: jnp.where(n > 1, (n - 1) / jnp.maximum(n, 1) ** 2, 1 / _SMALLEST),
    marginal_gain=_group_mean_gain,
)


def allocate(
    marginal_gain: MarginalGain,
    budget: ArrayLike,
    minimum: ArrayLike,
    maximum: ArrayLike,
    costs: Float[Array, " m"] | None = None,
    budget_in: Literal["samples", "costs"] = "samples",
) -> Int[Array, " m"]:
    """Counts that minimise Σ f_i(n_i), exactly, within the budget and `minimum` ≤ n_i ≤ `maximum`.

    The gains of a prompt fall with n (each f is convex) and prompts share nothing but the budget, so the optimum is the
    `budget` largest gains above the floors: exchanging a taken gain for one left over can only raise the objective.
    Those are the gains above one price. The price is found by bisection over the bit patterns of positive float32
    numbers, whose order is the numbers' order: 32 halvings reach neighbouring floats, so what is then still undecided
    are equal gains, and they go to the earliest positions. The counts at either end of the bracket bound those at
    every price between: only what lies between is searched. No loop over the budget; O(32 m log(maximum)) work at
    most, usually a fifth of it.

    What is left when every positive gain is taken goes to the prompts without gain, so that counts are as level as the
    bounds allow. A prompt of infinite gains comes before all finite ones; when the budget cannot give all of these, the
    earliest positions get theirs.

    With costs, gains are compared per unit of cost (infinite ones stay infinite). The optimal counts for all spendings
    then form one path, ordered by price, and `budget_in` says where on it to stop:

    - "samples": where Σ n_i = budget. No counts that cost as little have a lower objective. Leftovers as above.
    - "costs": before Σ c_i n_i exceeds the budget. The samples at the price are taken in order of position if they
      fit into what is left. The objective is within the gain of one sample of the least that fractions of samples
      could reach. Prompts without gain stay at their floor.

    Args:
        gain: of each prompt's next sample, such as `inverse(coefficients)`. Its arrays may be sharded.
        budget: samples to hand out, a traced int32 scalar or an int, at most 2**29; or the most they may cost, in
            float32. A budget outside what the bounds allow is moved to the nearer end, since a jitted function cannot
            raise: call `check_bounds` on the host first.
        minimum: floor of each prompt, one for all or one each; where it is above the maximum, that holds.
        maximum: cap of each prompt, one for all or one each; 0 masks a prompt out.
        costs: c_i > 0, what a sample of each prompt costs in any unit; None = all alike. A prompt whose cost is not a
            positive finite number gains nothing, and its floor costs nothing.
        budget_in: what the budget counts, "samples" or "costs".

    Returns:
        n_i, int32. Optimal up to gains that differ by float32 rounding (1e-7, relative). A sum of costs is rounded by
        6e-8·log2(m) at most.

    Raises:
        ValueError: `budget_in` is neither, or "costs" without costs.
    """
    if budget_in not in ("samples", "costs") or (budget_in == "costs" and costs is None):
        raise ValueError(
            f"budget_in = {budget_in!r} with costs {'not given' if costs is None else 'given'}: "
            'use "samples", or "costs" with costs'
        )
    by_cost = budget_in == "costs"
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = [jnp.shape(x) for x in (minimum, maximum, 1 if costs is None else costs)]
    shape = jnp.broadcast_shapes(jax.eval_shape(marginal_gain, scalar).shape, *shapes)
    upper = jnp.clip(jnp.broadcast_to(jnp.asarray(maximum, jnp.int32), shape), 0, _MANY)
    lower = jnp.clip(jnp.asarray(minimum, jnp.int32), 0, upper)
    units, relative_costs = jnp.int32(1), jnp.float32(1)
    if costs is not None:
        clean_costs, relative_costs = _clean_costs(jnp.asarray(costs, jnp.float32), upper > lower)
        units = clean_costs if by_cost else units

    def samples_worth(price: Float[Array, ""], fewer: Int[Array, " m"], more: Int[Array, " m"]) -> Int[Array, " m"]:
        # A product beyond float32 is a price that no finite gain reaches.
        return _samples_worth(marginal_gain, jnp.minimum(price * relative_costs, _LARGEST), fewer, more)

    if by_cost:
        upper = samples_worth(_SMALLEST, lower, upper)
    spare = jnp.clip(jnp.asarray(budget, units.dtype) - _sum(units * lower), 0, _sum(units * (upper - lower)))
    if not by_cost:
        upper = jnp.minimum(upper, lower + spare)

    # One integer key orders all samples. From zero up it is the bit pattern of a price, at which prompts buy
    # what gains as much. Below zero, all gains being bought, it is minus a level that counts are filled to.
    def halve(state):
        low, high, more, fewer, spent_on_fewer = state
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # the mean's floor, without overflow
        price = jax.lax.bitcast_convert_type(jnp.maximum(middle, _SMALLEST_BITS), jnp.float32)
        counts = jnp.clip(jnp.maximum(samples_worth(price, fewer, more), -middle), fewer, more)
        spent = _sum(units * (counts - lower))  # above the floors, which may cost so much that a sum would lose this
        within, beyond = (low, middle, more, counts, spent), (middle, high, counts, fewer, spent_on_fewer)
        return jax.tree.map(functools.partial(jnp.where, spent <= spare), within, beyond)

    def undecided(state):
        low, high, _, _, spent = state
        # Costs that are all spent up to rounding may still buy samples that are cheap beside the others.
        return (low + 1 < high) & (by_cost | (spent < spare))

    # At infinity all are at their floor, at the highest level (or, by cost, with all gains bought) at their cap.
    low = jnp.int32(_SMALLEST_BITS - 1) if by_cost else -jnp.max(upper, initial=0)
    state = (low, jnp.int32(_INFINITY_BITS), upper, lower, jnp.zeros_like(spare))
    _, _, more, counts, spent = jax.lax.while_loop(undecided, halve, state)
    return counts + _fill(more - counts, units, spare - spent)


def check_bounds(num_prompts: int, budget: int, minimum: ArrayLike, maximum: ArrayLike, least: int = 1) -> None:
    """Raises ValueError, on the host, where `allocate` could not keep both the budget in samples and the bounds.

    Args:
        num_prompts: prompts the budget is for.
        budget: samples to hand out.
        minimum: floor of each prompt, one for all or one each.
        maximum: cap of each prompt, one for all or one each; 0 masks a prompt out.
        least: smallest floor that the term allows, as `Term.least`. Of 1, a floor of 0 is allowed too: the term is
            infinite there, so prompts get their first sample if the budget has one for each.
    """
    lower, upper = (np.broadcast_to(np.asarray(bound, np.int64), num_prompts) for bound in (minimum, maximum))
    early = np.flatnonzero((lower < least) & (upper > 0)) if least > 1 else ()
    if len(early):
        i = early[0]
        raise ValueError(
            f"prompt {i} has minimum = {lower[i]}, but the variance that config.allocation.strategy lowers is "
            f"convex from {least} samples on only: set config.allocation.min_samples to at least {least}"
        )
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


def check_coefficients(coefficients: ArrayLike, prompt_ids: ArrayLike, costs: ArrayLike | None = None) -> None:
    """Raises ValueError, on the host, for what `allocate` would have to count as no gain.

    Args:
        coefficients: [m], refused where negative or NaN.
        prompt_ids: [m], for the message.
        costs: [m], refused where not a positive finite number.
    """

    def refuse(name: str, values: np.ndarray, bad: np.ndarray, allowed: str) -> None:
        if bad.any():
            i = np.flatnonzero(bad)[0]
            raise ValueError(
                f"prompt {np.asarray(prompt_ids)[i]} has {name} = {values[i]}, not {allowed} ({bad.sum()} of "
                f"{bad.size} prompts are wrong): look at what allocation.jsonl says of its statistics"
            )

    coefficients = np.asarray(coefficients)
    refuse("coefficient", coefficients, ~(coefficients >= 0), "a number >= 0")
    if costs is not None:
        costs = np.asarray(costs)
        refuse("cost", costs, ~((costs > 0) & (costs < np.inf)), "a finite number > 0")


def variance_ratio(
    coefficients: Float[Array, " m"], counts: Int[Array, " m"], valid: Bool[Array, " m"], term: Term = inverse
) -> Float[Array, ""]:
    """Variance of equal counts over variance of `counts`, Σ a_i φ(n̄) / Σ a_i φ(n_i), over the valid prompts.

    Above 1 the allocation helps; n̄ is the mean count, not rounded. It vanishes where φ is infinite for a prompt with
    a > 0, such as one without samples, and is 1 where there is nothing to compare.
    """
    coefficients = _relative(coefficients, valid)
    equal_counts = jnp.sum(counts, where=valid) / jnp.maximum(jnp.sum(valid), 1)
    equal = jnp.sum(coefficients) * term.value(equal_counts)
    chosen = jnp.sum(coefficients * term.value(counts.astype(jnp.float32)))
    return jnp.where((jnp.sum(coefficients) > 0) & (equal_counts > 0), equal / chosen, 1.0)


def ideal_variance_ratio(coefficients: Float[Array, " m"], valid: Bool[Array, " m"]) -> Float[Array, ""]:
    """The best `variance_ratio` of 1/n that real-valued counts without bounds reach, m Σa / (Σ√a)² = 1 + CV²(√a)."""
    coefficients = _relative(coefficients, valid)
    root_sum = jnp.sum(jnp.sqrt(coefficients))
    ratio = jnp.sum(valid) * jnp.sum(coefficients) / jnp.maximum(root_sum, _SMALLEST) ** 2
    return jnp.where(root_sum > 0, ratio, 1.0)


def _samples_worth(
    marginal_gain: MarginalGain, price: Float[Array, "*m"], fewer: Int[Array, " m"], more: Int[Array, " m"]
) -> Int[Array, " m"]:
    """The samples of each prompt whose gain is at least `price`, at least `fewer` and at most `more`."""

    def lift(state):
        step, counts = state
        higher = jnp.minimum(counts + step, more)
        return step >> 1, jnp.where(marginal_gain(higher - 1) >= price, higher, counts)  # NaN >= x is false

    width = jnp.max(more - fewer, initial=0)
    step = jnp.where(width > 0, 1 << (31 - jax.lax.clz(jnp.maximum(width, 1))), 0)  # its highest bit
    return jax.lax.while_loop(lambda state: state[0] > 0, lift, (step, fewer))[1]


def _fill(tied: Int[Array, " m"], units: Array, spare: Array) -> Int[Array, " m"]:
    """Of `tied`, what fits into `spare` if prompts are served in turn, each as many as fit at `units` apiece.

    One pass serves all up to the first who does not get everything. What is left is then less than its unit and less
    than half of what was there when its turn came, so there are few passes; with units of 1 there is one.
    """
    units = jnp.broadcast_to(units, tied.shape)

    def wants(state):
        filled, spare = state
        return (filled < tied) & (units <= spare)

    def serve(state):
        filled, spare = state
        open_ = jnp.where(wants(state), tied - filled, 0)
        room = (spare - _sums_before(units * open_)) // jnp.maximum(units, _SMALLEST.astype(units.dtype))
        served = jnp.clip(room, 0, open_).astype(jnp.int32)
        return filled + served, spare - _sum(units * served)

    return jax.lax.while_loop(lambda state: jnp.any(wants(state)), serve, (jnp.zeros_like(tied), spare))[0]


def _add(x: Array, y: Array) -> Array:
    """x + y; of integers, `_MANY` where it is above: a million prompts at a cap of a million overflow int32."""
    return jnp.minimum(x + y, _MANY) if jnp.issubdtype(x.dtype, jnp.integer) else x + y


def _sum(values: Array) -> Array:
    """The sum, adding neighbours pairwise: a rounding that grows with log2(m) and does not depend on sharding."""
    values = jnp.pad(values, (0, (1 << max(values.size - 1, 0).bit_length()) - values.size))
    while values.size > 1:
        pairs = values.reshape(-1, 2)
        values = _add(pairs[:, 0], pairs[:, 1])
    return values[0]


def _sums_before(values: Array) -> Array:
    """The sum of all earlier values, for each."""
    sums = jax.lax.associative_scan(_add, values)
    return jnp.pad(sums, (1, 0))[:-1]


def _clean(coefficients: Float[Array, " m"]) -> Float[Array, " m"]:
    coefficients = jnp.asarray(coefficients, jnp.float32)
    return jnp.where(coefficients >= _SMALLEST, jnp.minimum(coefficients, _LARGEST), 0)  # NaN >= x is false


def _clean_costs(costs: Float[Array, " m"], wanted: Bool[Array, " m"]) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Costs, 0 where they are none, and those of wanted prompts over a power of two, the least in [1, 2).

    The second are NaN for all others, so that no gain is worth it. As 1 or more, they only raise a price, which may
    overflow to infinity but never vanishes; the power of two leaves gains in proportion to costs equal per unit.
    """
    good = (costs >= _SMALLEST) & (costs <= _LARGEST)
    wanted &= good
    bits = jax.lax.bitcast_convert_type(costs, jnp.int32)
    least = jnp.min(bits, initial=_TOP_EXPONENT_BITS, where=wanted) & _EXPONENT_BITS
    fall = least - _ONE_BITS
    highest = _INFINITY_BITS + jnp.minimum(fall, 0)
    relative = jax.lax.bitcast_convert_type(jnp.minimum(bits, highest) - fall, jnp.float32)
    return jnp.where(good, costs, 0), jnp.where(wanted, relative, jnp.nan)


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
