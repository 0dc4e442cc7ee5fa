"""Packed rows hold every sample once, whole, and behind one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_jax.training.packing import PackedRows, pack

ROW = 12
jitted = jax.jit(pack, static_argnums=(2, 3))


def best_fit_decreasing(lengths, capacity):
    """The tokens of the bins, in the order in which they were opened."""
    bins = []
    for length in sorted((n for n in lengths if n), reverse=True):
        fits = [i for i, filled in enumerate(bins) if filled + length <= capacity]
        if fits:
            bins[max(fits, key=lambda i: (bins[i], -i))] += length
        else:
            bins.append(length)
    return bins


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, ROW), min_size=9, max_size=9), st.randoms(use_true_random=False))
def test_rows_are_those_of_best_fit_decreasing(lengths, random):
    numbers = random.sample(range(30), 9)
    begins = np.asarray(jitted(jnp.array(lengths), jnp.array(numbers), 9, ROW))
    length_of = dict(zip(numbers, lengths, strict=True))
    filled = []
    for row in begins:
        at = np.flatnonzero(row >= 0)
        ends = [begin + length_of[row[begin]] for begin in at]
        assert ends == [*at[1:], *ends[-1:]] and all(at[:1] == 0) and all(end <= ROW for end in ends)
        filled.append(ends[-1] if ends else 0)
    bins = best_fit_decreasing(lengths, ROW)
    assert filled == bins + [0] * (9 - len(bins))
    assert sorted(begins[begins >= 0]) == sorted(n for n in numbers if length_of[n])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, ROW // 3), min_size=9, max_size=9))
def test_rows_for_the_longest_samples_hold_any(lengths):
    begins = np.asarray(jitted(jnp.array(lengths), jnp.arange(9), 3, ROW))
    assert sorted(begins[begins >= 0]) == list(range(9))


@pytest.mark.parametrize("wanted", [[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0]])
def test_rows_hold_each_sample_whole(make_rollouts, wanted):
    rollouts = make_rollouts([3, 3], noise=0.1)
    lengths = np.where(wanted, rollouts.prompt_lengths + rollouts.response_lengths, 0)
    begins = pack(jnp.asarray(lengths), jnp.arange(6), 6, 2 * rollouts.tokens.shape[1])
    rows = jax.device_get(PackedRows.fill(begins, jax.tree.map(jnp.asarray, rollouts)))
    assert (np.asarray(begins) >= 0).any(1).sum() < sum(wanted), "some share a row"
    for sample in range(6):
        row, place = np.nonzero(rows.sample == sample)
        n, r = rollouts.prompt_lengths[sample], rollouts.response_lengths[sample]
        assert len(place) == (n + r) * wanted[sample]
        if wanted[sample]:
            assert set(row) == {row[0]}
            np.testing.assert_array_equal(rows.positions[row, place], np.arange(n + r))
            np.testing.assert_array_equal(rows.tokens[row, place], rollouts.tokens[sample, : n + r])
            np.testing.assert_array_equal(rows.response[row, place], np.arange(n + r) >= n)
            np.testing.assert_array_equal(rows.logprobs[row, place][n:], rollouts.logprobs[sample, :r])
    padding = rows.sample == 6
    assert not rows.response[padding].any() and not rows.tokens[padding].any() and not rows.logprobs[padding].any()
