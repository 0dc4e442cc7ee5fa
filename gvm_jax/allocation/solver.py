"""The variance program: integer counts that spend a budget of samples where the objective falls most.

    minimise  Σ_i f_i(n_i)   subject to   Σ_i n_i = budget,   minimum_i ≤ n_i ≤ maximum_i,   n_i integer,

for any convex f_i, declared by its marginal gains f_i(n) - f_i(n+1). For f = a/n its real-valued solution without
bounds is n_i ∝ √a_i (arXiv 2505.02391, Proposition 1). `allocate` solves it in integers, with bounds, exactly, and
inside a jitted step.

Three terms f = a·φ(n) cover the estimators whose variance the strategies reduce:

    term             φ            φ(n) - φ(n+1)               convex for
    sample_mean      1/n          1/(n(n+1))                  n ≥ 1     mean over n samples
    leave_one_out    1/(n-1)      1/(n(n-1))                  n ≥ 2     the mean of the others as a baseline
    group_mean       (n-1)/n²     (n²-n-1)/(n²(n+1)²)         n ≥ 3     the group's mean as a baseline

(n-1)/n² has the second derivative 2(n-3)/n⁴. It is 0 at one sample and 1/4 at two: without a floor it would reward
groups that carry no gradient.
"""

import dataclasses
import functools
from collections.abc import Callable

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
"""f_i(n) - f_i(n+1), the fall of the objective by one more sample of each prompt that has n.

Not negative and, from the floor on, not increasing in n. It is called inside loops, with counts [m] or one scalar for
all prompts, and must be elementwise. NaN and values below the smallest normal float32 count as zero; the largest
float32 and infinity count as infinite. Only the order of the gains of one call matters, so their scale is free.
"""


@dataclasses.dataclass(frozen=True)
class VarianceTerm:
    """A term a·φ(n) of the objective. `term(coefficients)` is the `MarginalGain` of Σ a_i φ(n_i).

    Coefficients a ≥ 0 may have any scale: they are multiplied by the power of two that brings the largest to float32's
    top, so gains of different calls are not comparable. NaN and negative ones count as zero, infinite ones as the
    largest float32. Below about 1e-60 of the largest a gain may count as zero.

    Below `convex_from` samples φ is infinite or not convex. There the gain of a prompt with a > 0 is the largest
    float32: it gets its first `convex_from` samples before any other prompt gets more than those. Counts are optimal if
    the budget allows that.
    """

    convex_from: int
    marginal_gain: Callable[[Array, Array], Array]  # a·(φ(n) - φ(n+1)) of a and n, without overflow for the largest a

    def __call__(self, coefficients: Float[Array, " m"]) -> MarginalGain:
        """The gains a·(φ(n) - φ(n+1)), a pytree: jitted functions may take it as an argument."""
        return jax.tree_util.Partial(self._marginal_gain_or_largest, _raise_exponents(_clean(coefficients)))

    def _marginal_gain_or_largest(self, scaled: Float[Array, " m"], samples: Int[Array, "*m"]) -> Float[Array, " m"]:
        marginal_gain = self.marginal_gain(scaled, jnp.maximum(samples, self.convex_from).astype(jnp.float32))
        return jnp.where((samples < self.convex_from) & (scaled > 0), _LARGEST, marginal_gain)


def _group_mean_gain(a: Array, n: Array) -> Array:
    # Not a / (product² / (n²-n-1)), which compilers turn into a·(n²-n-1) / product²: that overflows.
    product = n * (n + 1)
    return a / product * (1 - (2 * n + 1) / product)


sample_mean = VarianceTerm(1, lambda a, n: a / (n * (n + 1)))
leave_one_out = VarianceTerm(2, lambda a, n: a / (n * (n - 1)))
group_mean = VarianceTerm(3, _group_mean_gain)


def allocate(
    marginal_gain: MarginalGain,
    budget: ArrayLike,
    minimum: ArrayLike,
    maximum: ArrayLike,
    costs: Float[Array, " m"] | None = None,
) -> Int[Array, " m"]:
    """Counts that minimise Σ f_i(n_i), exactly, within the budget and `minimum` ≤ n_i ≤ `maximum`.

    The gains of a prompt fall with n (each f is convex) and prompts share nothing but the budget, so the optimum is the
    `budget` largest gains above the floors: exchanging a taken gain for one left over can only raise the objective.
    Those are the gains above one price. The price is found by bisection over the bit patterns of positive float32
    numbers, whose order is the numbers' order: 32 halvings reach neighbouring floats. Gains that are then still
    undecided are equal, and they go to the earliest positions. The counts at either end of the bracket bound those at
    every price between, so only these are searched. No loop over the budget; O(32 m log(maximum)) work at most,
    usually a fifth of it.

    The budget that is left when every positive gain is taken goes to the prompts without gain, so that counts are as
    level as the bounds allow. A prompt of infinite gains comes before all finite ones; when the budget cannot give all
    of these, the earliest positions get theirs.

    With costs, gains are compared per unit of cost (infinite ones stay infinite): no counts that cost as little have a
    lower objective, if all of the budget gains something.

    Args:
        marginal_gain: of each prompt's next sample, such as `sample_mean(coefficients)`. Its arrays may be sharded.
        budget: samples to hand out, a traced int32 scalar or an int, at most 2**29. A budget outside what the bounds
            allow is moved to the nearer end, since a jitted function cannot raise.
        minimum: floor of each prompt, one for all or one each; the maximum holds against it.
        maximum: cap of each prompt, one for all or one each.
        costs: c_i > 0, the cost of a sample of each prompt in any unit; None = all alike. A prompt whose cost is not a
            positive finite number gains nothing.

    Returns:
        n_i, int32. Optimal up to gains that differ by float32 rounding (1e-7, relative).
    """
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = [jnp.shape(x) for x in (minimum, maximum, 1 if costs is None else costs)]
    shape = jnp.broadcast_shapes(jax.eval_shape(marginal_gain, scalar).shape, *shapes)
    upper = jnp.clip(jnp.broadcast_to(jnp.asarray(maximum, jnp.int32), shape), 0, _MANY)
    lower = jnp.clip(jnp.asarray(minimum, jnp.int32), 0, upper)
    prices = jnp.float32(1) if costs is None else _relative_costs(jnp.asarray(costs, jnp.float32), upper > lower)
    spare = jnp.clip(jnp.asarray(budget, jnp.int32) - _sum(lower), 0, _sum(upper - lower))
    upper = jnp.minimum(upper, lower + spare)

    # One integer key orders all samples. From zero up it is the bit pattern of a price, at which prompts buy all
    # samples that gain as much. Below zero, all gains being bought, it is minus a level that counts are filled to.
    def halve(state):
        low, high, more, fewer, spent_on_fewer = state
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # the mean's floor, without overflow
        price = jax.lax.bitcast_convert_type(jnp.maximum(middle, _SMALLEST_BITS), jnp.float32)
        # A product beyond float32 is a price that no finite gain reaches.
        bought = _samples_worth(marginal_gain, jnp.minimum(price * prices, _LARGEST), fewer, more)
        counts = jnp.clip(jnp.maximum(bought, -middle), fewer, more)
        spent = _sum(counts - lower)
        within, beyond = (low, middle, more, counts, spent), (middle, high, counts, fewer, spent_on_fewer)
        return jax.tree.map(functools.partial(jnp.where, spent <= spare), within, beyond)

    def undecided(state):
        low, high, _, _, spent = state
        return (low + 1 < high) & (spent < spare)

    # At infinity all are at their floor, at the highest level at their cap.
    state = (-jnp.max(upper, initial=0), jnp.int32(_INFINITY_BITS), upper, lower, jnp.int32(0))
    _, _, more, counts, spent = jax.lax.while_loop(undecided, halve, state)
    tied = more - counts
    return counts + jnp.clip(spare - spent - _sums_before(tied), 0, tied)


def variance_ratio(
    coefficients: Float[Array, " m"], counts: Int[Array, " m"], where: Bool[Array, " m"] | None = None
) -> Float[Array, ""]:
    """Variance of equal counts over variance of `counts`, Σ a_i/n̄ / Σ a_i/n_i, over the prompts in `where` (or all).

    Above 1 the allocation helps; n̄ is the mean count, not rounded. The ratio vanishes where a prompt with a > 0 has no
    samples, and is 1 where there is nothing to compare.
    """
    where = jnp.ones(counts.shape, bool) if where is None else where
    coefficients = _relative(jnp.where(where, coefficients, 0))
    equal_counts = jnp.sum(counts, where=where) / jnp.maximum(jnp.sum(where), 1)
    equal = jnp.sum(coefficients) * (1 / jnp.maximum(equal_counts, _SMALLEST))
    chosen = jnp.sum(coefficients * (1 / jnp.maximum(counts.astype(jnp.float32), _SMALLEST)))
    return jnp.where((jnp.sum(coefficients) > 0) & (equal_counts > 0), equal / chosen, 1.0)


def ideal_variance_ratio(coefficients: Float[Array, " m"]) -> Float[Array, ""]:
    """The best `variance_ratio` of 1/n that real-valued counts without bounds reach, m Σa / (Σ√a)² = 1 + CV²(√a)."""
    coefficients = _relative(coefficients)
    root_sum = jnp.sum(jnp.sqrt(coefficients))
    ratio = coefficients.size * jnp.sum(coefficients) / jnp.maximum(root_sum, _SMALLEST) ** 2
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


def _add(x: Int[Array, "*m"], y: Int[Array, "*m"]) -> Int[Array, "*m"]:
    """x + y, or `_MANY` where it is above: a million prompts at a cap of a million overflow int32."""
    return jnp.minimum(x + y, _MANY)


def _sum(values: Int[Array, " m"]) -> Int[Array, ""]:
    """The sum, adding neighbours pairwise: not every device can reduce by `_add`."""
    values = jnp.pad(values, (0, (1 << max(values.size - 1, 0).bit_length()) - values.size))
    while values.size > 1:
        pairs = values.reshape(-1, 2)
        values = _add(pairs[:, 0], pairs[:, 1])
    return values[0]


def _sums_before(values: Int[Array, " m"]) -> Int[Array, " m"]:
    """The sum of all earlier values, for each."""
    return jnp.pad(jax.lax.associative_scan(_add, values), (1, 0))[:-1]


def _clean(coefficients: Float[Array, " m"]) -> Float[Array, " m"]:
    coefficients = jnp.asarray(coefficients, jnp.float32)
    return jnp.where(coefficients >= _SMALLEST, jnp.minimum(coefficients, _LARGEST), 0)  # NaN >= x is false


def _relative_costs(costs: Float[Array, " m"], wanted: Bool[Array, " m"]) -> Float[Array, " m"]:
    """Costs of wanted prompts over a power of two, the least in [1, 2); NaN for all others, so no gain is worth it.

    As 1 or more, they only raise a price, which may overflow to infinity but never vanishes; the power of two leaves
    gains in proportion to costs equal per unit.
    """
    wanted &= (costs >= _SMALLEST) & (costs <= _LARGEST)
    bits = jax.lax.bitcast_convert_type(costs, jnp.int32)
    least = jnp.min(bits, initial=_TOP_EXPONENT_BITS, where=wanted) & _EXPONENT_BITS
    fall = least - _ONE_BITS
    highest = _INFINITY_BITS + jnp.minimum(fall, 0)
    relative = jax.lax.bitcast_convert_type(jnp.minimum(bits, highest) - fall, jnp.float32)
    return jnp.where(wanted, relative, jnp.nan)


def _raise_exponents(coefficients: Float[Array, " m"]) -> Float[Array, " m"]:
    """Multiplies by the power of two that lifts the largest to float32's top, so that small gains stay normal.

    It adds to the exponents' bits, which is exact; the power of two itself may be beyond float32.
    """
    bits = jax.lax.bitcast_convert_type(coefficients, jnp.int32)
    lift = _TOP_EXPONENT_BITS - (jnp.max(bits, initial=0) & _EXPONENT_BITS)
    return jax.lax.bitcast_convert_type(jnp.where(bits > 0, bits + lift, 0), jnp.float32)


def _relative(coefficients: Float[Array, " m"]) -> Float[Array, " m"]:
    """Coefficients over the largest one: sums of them cannot overflow."""
    coefficients = _clean(coefficients)
    return coefficients / jnp.maximum(jnp.max(coefficients, initial=0), _SMALLEST)
