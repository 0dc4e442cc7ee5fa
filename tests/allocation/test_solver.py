import functools
import heapq
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from gvm_jax.allocation.solver import (
    allocate,
    group_mean,
    ideal_variance_ratio,
    leave_one_out,
    sample_mean,
    variance_ratio,
)

WIDTH = 40  # of the one compiled shape that all property tests share

# φ(n) in exact numbers and the least n, independent of the solver's terms.
TERMS = {
    "sample_mean": (sample_mean, lambda n: Fraction(1, n), 1),
    "leave_one_out": (leave_one_out, lambda n: Fraction(1, n - 1), 2),
    "group_mean": (group_mean, lambda n: Fraction(n - 1, n * n), 3),
}
every_term = pytest.mark.parametrize("name", TERMS)


def compile_term(term):
    return jax.jit(lambda a, *rest: allocate(term(a), *rest))


compiled = {name: compile_term(term) for name, (term, *_) in TERMS.items()}


def solve(coefficients, budget, minimum, maximum, name="sample_mean", costs=None):
    """`allocate` on a case of any width, with prompts of cap 0 behind those of the case."""
    size = len(coefficients)
    values = [(coefficients, np.float32), (minimum, np.int32), (maximum, np.int32)]
    values += [] if costs is None else [(costs, np.float32)]
    arrays = []
    for value, dtype in values:
        array = np.zeros(WIDTH, dtype)
        array[:size] = value
        arrays.append(array)
    counts = np.asarray(compiled[name](arrays[0], budget, *arrays[1:]))
    assert not counts[size:].any()
    return counts[:size]


def objective(coefficients, counts, name):
    """Σ a φ(n) as a pair: samples missing below the least, then the exact sum of the terms from there on."""
    _, phi, least = TERMS[name]
    terms = [(Fraction(float(a)), int(n)) for a, n in zip(coefficients, counts, strict=True) if a > 0]
    finite = sum((a * phi(n) for a, n in terms if n >= least), Fraction(0))
    return sum(max(least - n, 0) for _, n in terms), finite


def assert_as_good(counts, reference, coefficients, name):
    missing, finite = objective(coefficients, counts, name)
    missing_reference, finite_reference = objective(coefficients, reference, name)
    assert missing == missing_reference
    if not missing:  # else both objectives are infinite
        assert finite <= finite_reference * (1 + Fraction(1, 10**6))


def brute_force(coefficients, budget, minimum, maximum, name):
    ranges = [range(low, high + 1) for low, high in zip(minimum, maximum, strict=True)]
    feasible = (counts for counts in itertools.product(*ranges) if sum(counts) == budget)
    return min(feasible, key=lambda counts: objective(coefficients, counts, name))


def greedy(coefficients, budget, minimum, maximum, name):
    """One sample at a time to the largest exact gain; zero coefficients last, the least sampled first."""
    _, phi, least = TERMS[name]

    def entry(i):
        a, n = Fraction(float(coefficients[i])), counts[i]
        if a == 0:
            return (2, n, i)
        return (0, 0, i) if n < least else (1, -a * (phi(n) - phi(n + 1)), i)

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


@every_term
def test_gains_are_differences_of_the_term_and_do_not_rise_from_the_least_count_on(name):
    term, phi, least = TERMS[name]
    assert term.convex_from == least
    counts = range(least, 200)
    marginal_gain = jax.jit(term(jnp.asarray([3.0])))  # compilers rearrange divisions
    marginal_gains = np.asarray(marginal_gain(jnp.arange(least, 200)), np.float64)
    exact = np.asarray([float(phi(n) - phi(n + 1)) for n in counts])
    np.testing.assert_allclose(marginal_gains / marginal_gains[0], exact / exact[0], rtol=3e-7)
    many = np.asarray(marginal_gain(jnp.arange(least, 2_000_000)))
    assert (np.diff(many) <= 0).all() and many[-1] > 0


@every_term
def test_below_the_least_count_the_term_is_not_convex_and_its_gain_is_the_largest_float(name):
    term, phi, least = TERMS[name]
    marginal_gains = np.asarray(term(jnp.asarray([3.0, 0.0]))(jnp.arange(least)[:, None]))
    assert (marginal_gains == [np.finfo(np.float32).max, 0]).all()
    if name == "group_mean":  # the gain of the third sample is below that of the fourth
        assert phi(2) - phi(3) < phi(3) - phi(4)
        assert phi(1) < phi(2)  # and one sample would look best of all
    else:  # infinite
        with pytest.raises(ZeroDivisionError):
            phi(least - 1)


@settings(max_examples=150, deadline=None)
@given(cases(max_prompts=4, max_samples=5), st.sampled_from(list(TERMS)))
def test_optimum_equals_brute_force(case, name):
    counts = solve(*case, name)
    assert_feasible(counts, *case[1:])
    assert_as_good(counts, brute_force(*case, name), case[0], name)


@settings(max_examples=150, deadline=None)
@given(cases(max_prompts=WIDTH, max_samples=60), st.sampled_from(list(TERMS)))
def test_optimum_equals_exact_greedy(case, name):
    counts = solve(*case, name)
    assert_feasible(counts, *case[1:])
    reference = greedy(*case, name)
    assert_as_good(counts, reference, case[0], name)
    if min(case[0]) > 0:
        return
    zero = np.asarray(case[0]) == 0  # shared out the same way, up to who comes first among equals
    assert sorted(counts[zero]) == sorted(np.asarray(reference)[zero])


def gain_in_float64(name, a, n):
    """The gain of one more sample; infinite below the least count, 0 where a is."""
    least = TERMS[name][2]
    n = n.astype(np.float64)
    k = np.maximum(n, least)
    marginal_gain = {
        "sample_mean": lambda: 1 / (k * (k + 1)),
        "leave_one_out": lambda: 1 / (k * (k - 1)),
        "group_mean": lambda: (k * k - k - 1) / (k * (k + 1)) ** 2,
    }[name]()
    return np.where((n < least) & (a > 0), np.inf, a.astype(np.float64) * marginal_gain)


def random_cases(rng, count, size):
    """Scales from alike to 60 decades apart, values that tie, zeros, caps below floors, budgets out of reach."""
    decades = rng.choice([0.0, 0.5, 3.0, 30.0], (count, 1))
    a = 10.0 ** (decades * rng.uniform(-1, 1, (count, size)))
    a = np.where(rng.random((count, 1)) < 0.25, rng.choice([1.0, 2.0, 4.0, 6.0, 12.0], (count, size)), a)
    a = np.where(rng.random((count, size)) < rng.choice([0, 0.3, 0.9], (count, 1)), 0, a).astype(np.float32)
    minimum = rng.integers(0, 7, (count, size)).astype(np.int32)
    maximum = np.maximum(minimum + rng.integers(-1, 12, (count, size)), 0).astype(np.int32)
    lower = np.minimum(minimum, maximum)
    budget = rng.integers(lower.sum(1) - 3, maximum.sum(1) + 4).astype(np.int32)
    return a, budget, minimum, maximum


@every_term
def test_ten_thousand_cases_are_optimal_and_ties_go_to_the_earliest(name):
    a, budget, minimum, maximum = random_cases(np.random.default_rng(0), 10_000, 6)
    counts = np.asarray(jax.vmap(compiled[name])(a, budget, minimum, maximum))
    lower = np.minimum(minimum, maximum)
    assert (counts.sum(1) == np.clip(budget, lower.sum(1), maximum.sum(1))).all()  # infeasible: the nearer end
    assert (counts >= lower).all() and (counts <= maximum).all()
    # No exchange of two samples lowers the objective: for convex terms that is the global optimum.
    can_give, can_take = counts > lower, counts < maximum
    given_up = np.where(can_give, gain_in_float64(name, a, counts - 1), np.inf)
    gained = np.where(can_take, gain_in_float64(name, a, counts), 0)
    assert (gained.max(1) <= given_up.min(1) * (1 + 1e-6)).all()
    # Equal coefficients: the earlier prompt has as many samples, if its bounds let it.
    equal = (a[:, :, None] == a[:, None, :]) & np.triu(np.ones((6, 6), bool), 1)
    wrong = equal & can_take[:, :, None] & can_give[:, None, :] & (counts[:, :, None] < counts[:, None, :])
    wrong &= (a[:, :, None] == 0) | (counts[:, :, None] >= TERMS[name][2])  # else the earliest complete their least
    assert not wrong.any()
    # Zeros are level: none has two samples more than another that could take one.
    zero = a == 0
    highest = np.where(zero & can_give, counts, 0).max(1)
    lowest = np.where(zero & can_take, counts, 10**6).min(1)
    assert (highest - 1 <= lowest).all()
    assert (zero & can_give).any() and (budget < lower.sum(1)).any() and (budget > maximum.sum(1)).any()


@pytest.mark.parametrize("size", [100_000, 1_000_000])
@pytest.mark.parametrize("seed", range(2))
@every_term
def test_no_exchange_of_two_samples_lowers_the_objective_at_scale(name, seed, size):
    rng = np.random.default_rng(seed)
    a = np.exp(rng.normal(0, 1 + 2 * seed, size)).astype(np.float32)
    lower = rng.integers(1, 4, a.size).astype(np.int32) + 2
    upper = lower + rng.integers(0, (20, 10_000)[seed], a.size).astype(np.int32)
    counts = np.asarray(compiled[name](a, 10 * size, lower, upper))
    assert_feasible(counts, 10 * size, lower, upper)
    given_up, gained = gain_in_float64(name, a, counts - 1), gain_in_float64(name, a, counts)
    assert gained[counts < upper].max() <= given_up[counts > lower].min() * (1 + 1e-6)


def test_a_million_prompts_with_a_million_samples_do_not_overflow():
    a = np.exp(np.random.default_rng(0).normal(size=1_000_000)).astype(np.float32)
    solve_million = compiled["sample_mean"]
    assert_feasible(np.asarray(solve_million(a, 1_000_000, 0, 1_000_000)), 1_000_000, 0, 1)
    assert_feasible(np.asarray(solve_million(a * 0, 1_000_000, 0, 2**31 - 1)), 1_000_000, 0, 1)
    one = np.where(np.arange(a.size) == 7, 1e30, 1e-30).astype(np.float32)
    assert np.asarray(solve_million(one, 2_000_000, 1, 1_000_000))[7] == 1_000_000


def test_without_bounds_counts_round_the_real_valued_solution():
    weights = np.asarray([1.0, 2.0, 3.0, 4.0])
    assert solve(weights**2, 1_000_000, 0, 1_000_000).tolist() == [100_000, 200_000, 300_000, 400_000]
    counts = solve([1.0, 9.0], 2**29, 0, 2**31 - 1)
    assert counts.sum() == 2**29 and counts[0] == pytest.approx(2**27, rel=1e-6)


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
        marginal_gains = np.asarray(a, np.float32)[moved] / (last * (last - 1)).astype(np.float32)
    assert (marginal_gains == marginal_gains[:1]).all()  # ... and only between equal gains


@settings(max_examples=60, deadline=None)
@given(cases(max_prompts=WIDTH, max_samples=60), st.sampled_from(list(TERMS)), st.data())
def test_a_larger_coefficient_never_gets_fewer_samples(case, name, data):
    a, budget, minimum, maximum = case
    i = data.draw(st.integers(0, len(a) - 1))
    larger = data.draw(coefficient.filter(lambda value: value >= a[i]))
    assert solve([*a[:i], larger, *a[i + 1 :]], budget, minimum, maximum, name)[i] >= solve(*case, name)[i]


@settings(max_examples=50, deadline=None)
@given(cases(max_prompts=WIDTH, max_samples=60), st.sampled_from(list(TERMS)), st.integers(-40, 40))
def test_scale_of_the_coefficients_does_not_matter(case, name, exponent):
    a, *rest = case
    a = [value if value == 0 or 1e-20 < value < 1e20 else 1.0 for value in a]
    assert solve(a, *rest, name).tolist() == solve([value * 2.0**exponent for value in a], *rest, name).tolist()


def test_equal_gains_of_unequal_coefficients_go_to_the_first_positions():
    # 12/(3·4) = 6/(2·3) = 2/(1·2): one gain, three prompts.
    for order in itertools.permutations([(12.0, 3), (6.0, 2), (2.0, 1)]):
        a, floors = zip(*order, strict=True)
        for extra in range(4):
            expected = [floor + (i < extra) for i, floor in enumerate(floors)]
            assert solve(a, 6 + extra, floors, 9).tolist() == expected


EXAMPLES = {
    "equal coefficients give the remainder to the first positions": [([3.0] * 5, 13, 0, 13, [3, 3, 3, 2, 2])],
    "one sample each would look best to the group mean": [([1.0] * 3, 12, 0, 12, [4, 4, 4], "group_mean")],
    "too small a budget completes the least count of the earliest positions": [
        ([1.0, 0.0, 5.0, 9.0], 2 * least, 0, 99, [least, 0, least, 0], name) for name, (_, _, least) in TERMS.items()
    ],
    "scales that float32 products would lose are still ordered": [
        ([1e-30, 4e-30, 1e30, 1e-35], 31, 1, [50, 50, 5, 50], [8, 17, 5, 1]),
        ([1e-37, 4e-37], 300, 0, 300, [100, 200]),
        ([7.5e37, 3e38], 300, 0, 300, [100, 200]),
        ([1e-37, 4e-37], 303, 3, 300, [101, 202], "group_mean"),
    ],
    "zero coefficients keep their floor while a positive one can take more": [
        ([1.0, 0.0, 1e-25], 12, [0, 1, 1], [4, 9, 9], [4, 1, 7])
    ],
    "the budget that positive coefficients leave over levels the zero ones": [
        ([1.0, 0.0, 0.0, 0.0], 15, [0, 4, 0, 0], [4, 9, 9, 2], [4, 5, 4, 2]),
        *(([0.0] * 3, 7, 0, 7, [3, 2, 2], name) for name in TERMS),
    ],
    "not a number and negative count as zero, and infinity takes its cap": [
        ([np.nan, -1.0, np.inf, 1.0, -np.inf, 1e-45], 20, 1, 10, [1, 1, 10, 6, 1, 1]),
        ([np.nan] * 4, 6, 0, 6, [2, 2, 1, 1]),
    ],
    "infeasible bounds end at the nearest feasible sum": [
        ([1.0, 2.0], 3, 2, 4, [2, 2]),
        ([1.0, 2.0], 9, 2, 4, [4, 4]),
        ([1.0, 2.0], 6, 3, [1, 9], [1, 5]),  # the cap holds against the floor
    ],
    "first samples come before second ones whatever they cost": [
        ([1.0, 1.0], 2, 0, 9, [1, 1], "sample_mean", [1.0, 1e9]),
    ],
    "prompts whose cost is no positive number gain nothing": [
        ([1.0] * 6, 13, 1, 4, [4, 2, 1, 1, 1, 4], "sample_mean", [1.0, 0.0, -1.0, np.nan, np.inf, 2.0]),
    ],
    "costs too far apart for float32 leave the dear prompt at its floor": [
        ([1.0, 1.0], 10, 1, 9, [9, 1], "sample_mean", [1e-37, 1e37]),
    ],
    "costs of prompts with the cap 0 do not matter": [
        ([1.0, 1.0, 4.0], 12, [0, 1, 1], [0, 30, 30], [0, 6, 6], "sample_mean", [1e-37, 1.0, 4.0]),
    ],
}


@pytest.mark.parametrize("behaviour", EXAMPLES)
def test_example(behaviour):
    for a, budget, minimum, maximum, expected, *more in EXAMPLES[behaviour]:
        assert solve(a, budget, minimum, maximum, *more).tolist() == expected


def test_no_prompts_have_no_counts():
    assert compiled["sample_mean"](jnp.zeros(0), 5, 1, 2).shape == (0,)


def greedy_by_gains(marginal_gain, budget, minimum, maximum):
    """One sample at a time to the largest of the gains in float64, the earliest of equal ones."""
    counts = np.asarray(minimum).copy()
    for _ in range(budget - counts.sum()):
        counts[np.argmax(np.where(counts < maximum, marginal_gain(counts), -1))] += 1
    return counts


@pytest.mark.parametrize("seed", range(3))
def test_gains_without_closed_form_are_solved_like_a_greedy_in_float64(seed):
    rng = np.random.default_rng(seed)
    p, rate = rng.uniform(0.01, 0.99, WIDTH).astype(np.float32), rng.lognormal(-2, 1, WIDTH).astype(np.float32)
    minimum = rng.integers(2, 4, WIDTH)
    maximum = minimum + rng.integers(0, 40, WIDTH)

    def odds_of_both_outcomes(n, xp, parameter):
        p = parameter
        return (p**n * (1 - p) + (1 - p) ** n * p) * p * (1 - p) ** 2

    def saturating(n, xp, parameter):
        return xp.exp(-parameter * n) * -xp.expm1(-parameter)

    for formula, parameter in ((odds_of_both_outcomes, p), (saturating, rate)):

        def ours(parameter, *rest, formula=formula):
            return allocate(functools.partial(formula, xp=jnp, parameter=parameter), *rest)

        exact = functools.partial(formula, xp=np, parameter=parameter.astype(np.float64))
        solver = jax.jit(ours)
        for budget in rng.integers(minimum.sum(), maximum.sum() + 1, 5):
            counts = np.asarray(solver(parameter, budget, minimum, maximum))
            assert_feasible(counts, budget, minimum, maximum)
            reference = greedy_by_gains(exact, budget, minimum, maximum)
            value, best = (sum(np.where(n < x, exact(n), 0).sum() for n in range(50)) for x in (counts, reference))
            assert value >= best * (1 - 1e-6)


def test_constant_gains_are_linear_objectives_and_serve_the_dearest_first_then_the_earliest():
    marginal_gain = jnp.asarray([1.0, 3.0, 1.0, jnp.nan, jnp.inf, 0.0, -1.0])
    take = lambda budget: allocate(lambda n: marginal_gain + 0 * n, budget, 0, 4).tolist()  # noqa: E731
    assert take(6) == [0, 2, 0, 0, 4, 0, 0]
    assert take(11) == [3, 4, 0, 0, 4, 0, 0]
    assert take(14) == [4, 4, 2, 0, 4, 0, 0]
    assert take(20) == [4, 4, 4, 2, 4, 1, 1]


def test_a_million_constant_gains_do_not_overflow_the_shares_of_the_tied():
    counts = np.asarray(jax.jit(lambda b: allocate(lambda n: jnp.ones(1_000_000), b, 0, 2**30))(2**29))
    assert counts[0] == 2**29 and counts.sum() == 2**29


def test_new_gains_and_budgets_do_not_compile_again():
    traces = []

    @jax.jit
    def solver(marginal_gain, budget):
        traces.append(1)
        return allocate(marginal_gain, budget, 1, budget)

    assert solver(sample_mean(jnp.asarray([1.0, 4.0])), 300).tolist() == [100, 200]
    assert solver(sample_mean(jnp.asarray([4.0, 1.0])), 30).tolist() == [20, 10]
    assert len(traces) == 1
    assert allocate(sample_mean(jnp.asarray([4.0, 1.0])), 30, 1, 30).tolist() == [20, 10]  # not traced


def test_sharded_prompts_get_the_counts_of_unsharded_ones(test_mesh):
    rng = np.random.default_rng(0)
    a, costs = (np.exp(rng.normal(0, 1, 1000)).astype(np.float32) for _ in range(2))
    a[::3], costs[::2] = 1.0, 1.0  # ties
    bounds = np.full(1000, 1), np.full(1000, 50)
    sharding = NamedSharding(test_mesh(data=4), PartitionSpec("data"))
    for arrays in ((a, *bounds), (a, *bounds, costs)):
        split = [jax.device_put(array, sharding) for array in arrays]
        assert len(split[0].sharding.device_set) == 4
        expected = np.asarray(compiled["sample_mean"](a, 4321, *arrays[1:]))
        assert expected.sum() == 4321
        np.testing.assert_array_equal(compiled["sample_mean"](split[0], 4321, *split[1:]), expected)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(coefficient, st.sampled_from([1.0, 2.0, 3.0, 50.0])), min_size=2, max_size=4),
    st.integers(0, 12),
    st.sampled_from(list(TERMS)),
)
def test_no_counts_that_cost_as_little_have_a_lower_objective(prompts, extra, name):
    a, costs = zip(*prompts, strict=True)
    least = TERMS[name][2]
    lower, upper = [least] * len(a), [least + 4] * len(a)
    budget = min(sum(lower) + extra, sum(upper))
    counts = solve(a, budget, lower, upper, name, costs)
    assert_feasible(counts, budget, lower, upper)
    if any(n > least for n, x in zip(counts, a, strict=True) if x == 0):
        return  # leftovers without gain do cost
    spent = np.dot(counts, costs)
    others = itertools.product(*(range(low, high + 1) for low, high in zip(lower, upper, strict=True)))
    best = min(objective(a, n, name)[1] for n in others if np.dot(n, costs) <= spent)
    assert objective(a, counts, name)[1] <= best * (1 + Fraction(1, 10**6))


def test_equal_costs_of_any_size_change_nothing():
    a, budget, minimum, maximum = random_cases(np.random.default_rng(2), 300, 6)
    expected = jax.vmap(compiled["sample_mean"])(a, budget, minimum, maximum)
    for cost in (1e-30, 1.0, 1e30):
        costs = np.full(a.shape, cost, np.float32)
        counts = jax.vmap(compiled["sample_mean"])(a, budget, minimum, maximum, costs)
        np.testing.assert_array_equal(counts, expected)


def test_counts_follow_the_root_of_coefficient_over_cost():
    a, costs = np.asarray([1.0, 4.0, 9.0]), np.asarray([1.0, 100.0, 9.0])
    weights = np.sqrt(a / costs)
    counts = solve(a, 10**6, 0, 10**7, costs=costs)
    np.testing.assert_allclose(counts, 1e6 * weights / weights.sum(), rtol=1e-4)


def test_variance_ratio_of_the_optimum_is_one_plus_the_squared_coefficient_of_variation():
    weights = np.random.default_rng(1).lognormal(0, 0.7, 64)
    a = jnp.asarray(weights**2, jnp.float32)
    expected = 1 + (weights.std() / weights.mean()) ** 2
    counts = allocate(sample_mean(a), 1_000_000, 0, 1_000_000)
    assert float(ideal_variance_ratio(a)) == pytest.approx(expected, rel=1e-5)
    assert float(variance_ratio(a, counts)) == pytest.approx(expected, rel=1e-5)
    assert float(variance_ratio(a, jnp.full(64, 7))) == pytest.approx(1, rel=1e-6)


def test_variance_ratio_compares_the_chosen_prompts_only_and_stays_finite():
    a, counts = jnp.asarray([1.0, 4.0, 1e30]), jnp.asarray([2, 4, 0])
    where = jnp.asarray([True, True, False])
    assert float(variance_ratio(a, counts, where=where)) == pytest.approx((5 / 3) / (1 / 2 + 4 / 4), rel=1e-6)
    assert float(variance_ratio(a, counts.at[2].set(9), where=where)) == pytest.approx((5 / 3) / 1.5, rel=1e-6)
    assert float(variance_ratio(a, counts)) < 1e-30  # a prompt with a > 0 and no sample
    assert float(variance_ratio(jnp.full(3, 3e38), jnp.full(3, 5))) == pytest.approx(1)
    assert float(variance_ratio(a, counts * 0)) == 1
    for empty in (jnp.zeros(3), jnp.full(3, jnp.nan)):
        assert float(variance_ratio(empty, counts)) == 1 and float(ideal_variance_ratio(empty)) == 1
