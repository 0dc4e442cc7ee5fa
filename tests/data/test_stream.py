import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_jax.data import DataError, PromptStream

property_test = settings(max_examples=20, deadline=None, derandomize=True)


@st.composite
def stream_arguments(draw):
    ids = draw(st.lists(st.integers(0, 10_000), min_size=1, max_size=40, unique=True))
    return np.array(sorted(ids)), draw(st.integers(1, len(ids))), draw(st.integers(0, 2**31 - 1))


@property_test
@given(stream_arguments())
def test_an_epoch_is_a_permutation_up_to_the_dropped_remainder(arguments):
    ids, prompts_per_step, seed = arguments
    stream = PromptStream(ids, prompts_per_step, seed)
    steps = len(ids) // prompts_per_step
    for epoch in range(3):
        batches = [stream[epoch * steps + i] for i in range(steps)]
        assert all(batch.shape == (prompts_per_step,) and batch.dtype == np.int32 for batch in batches)
        seen = np.concatenate(batches).tolist()
        assert len(set(seen)) == len(seen) == steps * prompts_per_step
        assert set(seen) <= set(ids.tolist())


@property_test
@given(stream_arguments())
def test_random_access_equals_sequential_access_of_an_equal_stream(arguments):
    ids, prompts_per_step, seed = arguments
    steps = min(2 * (len(ids) // prompts_per_step) + 2, 20)
    first = PromptStream(ids, prompts_per_step, seed)
    sequential = [first[step] for step in range(steps)]
    for step in reversed(range(steps)):  # as a run that resumes at this step
        np.testing.assert_array_equal(PromptStream(ids, prompts_per_step, seed)[step], sequential[step])


def test_each_epoch_and_each_seed_has_its_own_order():
    orders = {
        tuple(np.concatenate([PromptStream(np.arange(60), 6, seed)[step] for step in range(start, start + 10)]))
        for seed in (0, 1)
        for start in (0, 10, 20)
    }
    assert len(orders) == 6
    assert tuple(range(60)) not in orders


def test_no_prompt_is_left_out_for_good_by_the_dropped_remainder():
    stream = PromptStream(np.arange(7), 3, seed=0)
    counts = collections.Counter(np.concatenate([stream[step] for step in range(100)]).tolist())
    assert set(counts) == set(range(7))
    assert max(counts.values()) - min(counts.values()) < 25  # 43 each on average, sigma about 3.5


def test_too_few_prompts_and_steps_before_the_first_are_errors():
    with pytest.raises(DataError, match=r"prompts_per_step × allocation.prompt_pool = 8.* 5 prompts"):
        PromptStream(np.arange(5), 8, seed=0)
    with pytest.raises(IndexError, match="-1"):
        PromptStream(np.arange(5), 2, seed=0)[-1]
