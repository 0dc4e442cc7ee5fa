import heapq
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_jax.allocation import allocate, check_bounds, ideal_variance_ratio, variance_ratio

WIDTH = 40  # all property tests share one compiled shape; what a case does not use is masked out
compiled = jax.jit(allocate)


def solve(coefficients, budget, minimum, maximum):
    """`allocate` on a case of any width, padded with masked prompts to one shape."""
    size = len(coefficients)
    a, lower, upper = np.zeros(WIDTH, np.float32), np.zeros(WIDTH, np.int32), np.zeros(WIDTH, np.int32)
    a[:size], lower[:size], upper[:size] = coefficients, minimum, maximum
    counts = np.asarray(compiled(a, budget, lower, upper))
    assert not counts[size:].any()
    return counts[:size]


def objective(coefficients, counts):
    """Σ a/n as a pair: the prompts with an infinite term, then the exact sum of the others."""
    terms = [(Fraction(float(a)), int(n)) for a, n in zip(coefficients, counts, strict=True) if a > 0]
    return sum(n == 0 for _, n in terms), sum((a / n for a, n in terms if n), Fraction(0))


def assert_as_good(counts, reference, coefficients):
    infinite, finite = objective(coefficients, counts)
    infinite_reference, finite_reference = objective(coefficients, reference)
    assert infinite == infinite_reference
    if not infinite:  # else both objectives are infinite
        assert finite <= finite_reference * (1 + Fraction(1, 10**6))


def brute_force(coefficients, budget, minimum, maximum):
    ranges = [range(low, high + 1) for low, high in zip(minimum, maximum, strict=True)]
    feasible = (counts for counts in itertools.product(*ranges) if sum(counts) == budget)
    return min(feasible, key=lambda counts: objective(coefficients, counts))


def greedy(coefficients, budget, minimum, maximum):
    """One sample at a time to the largest exact gain; zero coefficients last, the least sampled first."""

    def entry(i):
        a, n = Fraction(float(coefficients[i])), counts[i]
        if a == 0:
            return (2, n, i)
        return (0, 0, i) if n == 0 else (1, -a / (n * (n + 1)), i)

    counts = list(minimum)
    heap = [entry(i) for i in range(len(counts)) if counts[i] < maximum[i]]
    heapq.heapify(heap)
    for _ in range(budget - sum(counts)):
        *_, i = heapq.heappop(heap)
        counts[i] += 1
        if counts[i] < maximum[i]:
            heapq.heappush(heap, entry(i))
    return counts


def powers_of_ten(low, high):
    exponents = st.floats(low, high, allow_subnormal=False)
    return exponents.map(lambda exponent: float(np.float32(10.0**exponent)))


tying = st.sampled_from([0.0, 1.0, 2.0, 4.0, 6.0, 12.0])
coefficient = st.one_of(powers_of_ten(-3, 3), powers_of_ten(-30, 30), tying)


@st.composite
def cases(draw, max_prompts, max_samples):
    size = draw(st.integers(1, max_prompts))
    a = draw(st.lists(coefficient, min_size=size, max_size=size))
    minimum = draw(st.lists(st.integers(0, max_samples), min_size=size, max_size=size))
    extra = draw(st.lists(st.integers(0, max_samples), min_size=size, max_size=size))
    maximum = [low + more for low, more in zip(minimum, extra, strict=True)]
    budget = draw(st.integers(sum(minimum), sum(maximum)))
    return a, budget, minimum, maximum


def assert_feasible(counts, budget, minimum, maximum):
    assert counts.dtype == np.int32
    assert counts.sum() == budget
    assert (counts >= minimum).all() and (counts <= maximum).all()


@settings(max_examples=150, deadline=None)
@given(cases(max_prompts=4, max_samples=5))
def test_optimum_equals_brute_force(case):
    counts = solve(*case)
    assert_feasible(counts, *case[1:])
    assert_as_good(counts, brute_force(*case), case[0])


@settings(max_examples=150, deadline=None)
@given(cases(max_prompts=WIDTH, max_samples=60))
def test_optimum_equals_exact_greedy(case):
    counts = solve(*case)
    assert_feasible(counts, *case[1:])
    reference = greedy(*case)
    assert_as_good(counts, reference, case[0])
    if min(case[0]) > 0:
        return
    zero = np.asarray(case[0]) == 0  # shared out the same way, up to who comes first among equals
    assert sorted(counts[zero]) == sorted(np.asarray(reference)[zero])


@pytest.mark.parametrize("seed", range(6))
def test_no_exchange_of_two_samples_lowers_the_objective_at_scale(seed):
    # For separable convex terms this local condition is the global optimum.
    rng = np.random.default_rng(seed)
    a = np.exp(rng.normal(0, 1 + 2 * (seed % 3), 100_000)).astype(np.float32)
    lower = rng.integers(1, 4, a.size).astype(np.int32)
    upper = lower + rng.integers(0, (20, 10_000)[seed % 2], a.size).astype(np.int32)
    counts = np.asarray(compiled(a, 1_000_000, lower, upper))
    assert_feasible(counts, 1_000_000, lower, upper)
    wide, n = a.astype(np.float64), counts.astype(np.float64)
    with np.errstate(divide="ignore"):
        given_up, gained = (wide / ((n - 1) * n))[counts > lower], (wide / (n * (n + 1)))[counts < upper]
    assert gained.max() <= given_up.min() * (1 + 1e-6)


def test_without_bounds_counts_round_the_real_valued_solution():
    weights = np.asarray([1.0, 2.0, 3.0, 4.0])
    assert solve(weights**2, 1_000_000, 0, 1_000_000).tolist() == [100_000, 200_000, 300_000, 400_000]


def test_a_million_prompts_with_a_million_samples_do_not_overflow():
    a = np.exp(np.random.default_rng(0).normal(size=1_000_000)).astype(np.float32)
    assert_feasible(np.asarray(compiled(a, 1_000_000, 0, 1_000_000)), 1_000_000, 0, 1)
    assert_feasible(np.asarray(compiled(a * 0, 1_000_000, 0, 2**31 - 1)), 1_000_000, 0, 1)
    one = np.where(np.arange(a.size) == 7, 1e30, 1e-30).astype(np.float32)
    assert np.asarray(compiled(one, 2_000_000, 1, 1_000_000))[7] == 1_000_000


@settings(max_examples=50, deadline=None)
@given(cases(max_prompts=WIDTH, max_samples=60), st.randoms())
def test_permuted_prompts_have_permuted_counts_up_to_ties(case, random):
    a, budget, minimum, maximum = case
    order = random.sample(range(len(a)), len(a))
    a, minimum, maximum = ([values[i] for i in order] for values in (a, minimum, maximum))
    permuted, counts = solve(a, budget, minimum, maximum), solve(*case)[order]
    assert np.abs(counts - permuted).max() <= 1  # only a prompt's last sample may move ...
    moved = np.flatnonzero(counts != permuted)
    last = np.maximum(counts, permuted)[moved]
    with np.errstate(divide="ignore"):
        gains = np.asarray(a, np.float32)[moved] / (last * (last - 1)).astype(np.float32)
    assert (gains == gains[:1]).all()  # ... and only between equal gains


@settings(max_examples=100, deadline=None)
@given(cases(max_prompts=WIDTH, max_samples=60), st.data())
def test_a_larger_coefficient_never_gets_fewer_samples(case, data):
    a, budget, minimum, maximum = case
    i = data.draw(st.integers(0, len(a) - 1))
    larger = data.draw(coefficient.filter(lambda value: value >= a[i]))
    assert solve([*a[:i], larger, *a[i + 1 :]], budget, minimum, maximum)[i] >= solve(*case)[i]


@settings(max_examples=50, deadline=None)
@given(cases(max_prompts=WIDTH, max_samples=60), st.integers(-40, 40))
def test_scale_of_the_coefficients_does_not_matter(case, exponent):
    a, *rest = case
    a = [value if value == 0 or 1e-20 < value < 1e20 else 1.0 for value in a]
    assert solve(a, *rest).tolist() == solve([value * 2.0**exponent for value in a], *rest).tolist()


def test_scales_that_float32_products_would_lose_are_still_ordered():
    a = [1e-30, 4e-30, 1e30, 1e-35]
    assert solve(a, 31, [1, 1, 1, 1], [50, 50, 5, 50]).tolist() == [8, 17, 5, 1]
    assert solve([1e-37, 4e-37], 300, 0, 300).tolist() == [100, 200]
    assert solve([7.5e37, 3e38], 300, 0, 300).tolist() == [100, 200]


def test_equal_coefficients_give_the_remainder_to_the_first_positions():
    assert solve([3.0] * 5, 13, 0, 13).tolist() == [3, 3, 3, 2, 2]


def test_zero_coefficients_keep_their_floor_while_a_positive_one_can_take_more():
    assert solve([1.0, 0.0, 1e-25], 12, [0, 1, 1], [4, 9, 9]).tolist() == [4, 1, 7]


def test_budget_left_over_by_positive_coefficients_levels_the_zero_ones():
    assert solve([1.0, 0.0, 0.0, 0.0], 15, [0, 4, 0, 0], [4, 9, 9, 2]).tolist() == [4, 5, 4, 2]


def test_all_zero_coefficients_share_evenly():
    assert solve([0.0] * 3, 7, 0, 7).tolist() == [3, 2, 2]


def test_too_small_a_budget_for_first_samples_serves_the_earliest_positions():
    assert solve([1.0, 0.0, 5.0, 9.0], 2, 0, 2).tolist() == [1, 0, 1, 0]


def test_not_a_number_and_negative_count_as_zero_and_infinity_takes_its_cap():
    a = [np.nan, -1.0, np.inf, 1.0, -np.inf, 1e-45]
    assert solve(a, 20, 1, 10).tolist() == [1, 1, 10, 6, 1, 1]
    assert solve([np.nan] * 4, 6, 0, 6).tolist() == [2, 2, 1, 1]


def test_infeasible_bounds_end_at_the_nearest_feasible_sum():
    assert solve([1.0, 2.0], 3, 2, 4).tolist() == [2, 2]
    assert solve([1.0, 2.0], 9, 2, 4).tolist() == [4, 4]
    assert solve([1.0, 2.0], 6, 3, [1, 9]).tolist() == [1, 5]  # the cap holds against the floor
    assert compiled(jnp.zeros(0), 5, 1, 2).shape == (0,)


def test_a_traced_budget_compiles_once():
    traces = []

    @jax.jit
    def traced(a, budget):
        traces.append(1)
        return allocate(a, budget, 1, budget)

    a = jnp.asarray([1.0, 4.0, 9.0])
    assert [int(traced(a, budget).sum()) for budget in (3, 30, 3000)] == [3, 30, 3000]
    assert len(traces) == 1
    assert traced(a, 30).tolist() == allocate(a, 30, 1, 30).tolist()  # a static budget is the same program


def test_bounds_that_cannot_hold_are_refused_with_the_numbers_and_the_fix():
    check_bounds(4, 8, 1, 8)
    check_bounds(2, 3, [1, 0], [1, 2])
    with pytest.raises(ValueError, match=r"budget = 7 is below 8.*4 prompts.*config.allocation.min_samples"):
        check_bounds(4, 7, 2, 8)
    with pytest.raises(ValueError, match=r"budget = 17 is above 16.*config.allocation.max_samples"):
        check_bounds(4, 17, 2, 4)
    with pytest.raises(ValueError, match=r"prompt 1 has minimum = 3 and maximum = 2"):
        check_bounds(2, 5, 3, [9, 2])
    check_bounds(10**6, 2**40, 0, 2**30)  # no int32 on the host


def test_variance_ratio_of_the_optimum_is_one_plus_the_squared_coefficient_of_variation():
    weights = np.random.default_rng(1).lognormal(0, 0.7, 64)
    a, valid = jnp.asarray(weights**2, jnp.float32), jnp.ones(64, bool)
    expected = 1 + (weights.std() / weights.mean()) ** 2
    counts = allocate(a, 1_000_000, 0, 1_000_000)
    assert float(ideal_variance_ratio(a, valid)) == pytest.approx(expected, rel=1e-5)
    assert float(variance_ratio(a, counts, valid)) == pytest.approx(expected, rel=1e-5)
    assert float(variance_ratio(a, jnp.full(64, 7), valid)) == pytest.approx(1, rel=1e-6)


def test_variance_ratio_counts_valid_prompts_only_and_stays_finite():
    a, counts = jnp.asarray([1.0, 4.0, 1e30]), jnp.asarray([2, 4, 0])
    valid = jnp.asarray([True, True, False])
    assert float(variance_ratio(a, counts, valid)) == pytest.approx((5 / 3) / (1 / 2 + 4 / 4), rel=1e-6)
    assert float(ideal_variance_ratio(a, valid)) == pytest.approx(2 * 5 / 3**2, rel=1e-6)
    assert float(variance_ratio(a, counts.at[2].set(9), valid)) == pytest.approx((5 / 3) / 1.5, rel=1e-6)
    assert float(variance_ratio(a, counts, valid | True)) < 1e-30  # a prompt with a > 0 and no sample
    assert float(variance_ratio(jnp.full(3, 3e38), jnp.full(3, 5), valid)) == pytest.approx(1)
    for empty in (jnp.zeros(3), jnp.full(3, jnp.nan)):
        assert float(variance_ratio(empty, counts, valid)) == 1
        assert float(ideal_variance_ratio(empty, valid)) == 1
    assert math.isclose(float(variance_ratio(a, counts * 0, valid)), 1)
