"""Which samples of a step are kept as text, and that they are cut with the other tables on resume."""

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvm_jax.data import PromptSet
from gvm_jax.rollout.policy import SampleStats
from gvm_jax.rollout.rollouts import Samples
from gvm_jax.runtime.metrics import MetricsWriter, read_rows
from gvm_jax.runtime.progress import ProgressPrinter
from gvm_jax.training.journal import Journal, Totals
from gvm_jax.training.sampler import STATUSES, GradedRollouts
from gvm_jax.training.samples import SampleTexts, spread


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 40))
def test_samples_are_spread_as_evenly_as_counts_and_limit_allow(groups, limit):
    group = np.array(groups, int)
    rows = spread(group, limit)
    assert len(rows) == len(set(rows.tolist())) == min(limit, len(group))
    assert (np.diff(group[rows]) >= 0).all()
    counts = np.bincount(group, minlength=10)
    taken = np.bincount(group[rows], minlength=10)
    highest = taken.max(initial=0)
    assert (taken >= np.minimum(counts, highest - 1)).all(), "none has two more than another that had more to give"
    for prompt in range(10):  # the first ones of a prompt
        assert sorted(rows[group[rows] == prompt]) == np.flatnonzero(group == prompt)[: taken[prompt]].tolist()


def test_with_less_room_than_prompts_they_stand_at_even_distances():
    assert spread(np.repeat(np.arange(12), 3), 4).tolist() == [0, 9, 18, 27]


@pytest.fixture
def graded():
    """Two prompts with samples in the order pilot, fresh, and rows of padding that belong to a prompt beyond."""
    samples = Samples(4)
    for row in samples.add(4):
        samples.append(np.array([row]), np.array([[10 + row, 5, -1]]), np.zeros((1, 3), np.float32))
    rollouts = samples.rollouts([np.array([1, 2]), np.array([1, 3, 4])], np.array([0, 1, 0, 1]), 5)
    rollouts = rollouts.replace(stopped=np.array([True, True, False, True])).pad(6, group=2)
    correct, wrong = (next(i for i, status in enumerate(STATUSES) if status.value == s) for s in ("correct", "wrong"))
    statuses = np.array([correct, wrong, wrong, correct], np.int32)
    return GradedRollouts(rollouts, np.array([1, 0, 0, 1], np.float32), statuses, SampleStats())


def texts(limit):
    ids = np.array([3, 7, 9], np.int32)
    prompts = PromptSet(ids, [np.array([1, 2])] * 3, ["one?", "two?", "three?"], ["1", "2", "3"], 10, {})
    endings = types.SimpleNamespace(text=lambda response: " ".join(map(str, response)))
    return SampleTexts(prompts, endings, limit)


def test_a_row_has_its_own_prompt_response_and_verdict(graded):
    assert texts(9).columns(np.array([9, 3]), graded) == {
        "prompt_id": [9, 9, 3, 3],
        "prompt": ["three?", "three?", "one?", "one?"],
        "reference": ["3", "3", "1", "1"],
        "response": ["10 5", "12 5", "11 5", "13 5"],
        "reward": [1.0, 0.0, 0.0, 1.0],
        "status": ["correct", "wrong", "wrong", "correct"],
        "tokens": [2, 2, 2, 2],
        "stopped": [True, False, True, True],
    }


@pytest.mark.parametrize("limit", [0, 2])
def test_resuming_cuts_the_samples_of_later_steps_even_where_no_more_are_written(limit, tmp_path):
    tables = ("allocation", "samples")
    with MetricsWriter(tmp_path) as writer:
        for step in (1, 2, 3):
            for table in tables:
                writer.write_rows(table, step, {"response": [f"</script> of {step}", "\ud800 \u2028"]})
    kept = {table: (tmp_path / f"{table}.jsonl").read_bytes().splitlines(keepends=True)[:2] for table in tables}
    Journal(tmp_path, ProgressPrinter(5, active=False), Totals(), 5, 2, active=True, samples=texts(limit)).close()
    for table in tables:
        assert (tmp_path / f"{table}.jsonl").read_bytes() == b"".join(kept[table])
        assert read_rows(tmp_path, table)[1] == {"step": 2, "response": ["</script> of 2", "\ud800 \u2028"]}
