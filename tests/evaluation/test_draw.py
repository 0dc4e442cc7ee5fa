"""What is missing is asked for once, and what the verifier failed on is graded again."""

import types

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_jax.evaluation.draw import draw, missing_runs, rounds
from gvm_jax.evaluation.store import SampleStore
from gvm_jax.rewards import Grader

ids = st.lists(st.integers(0, 9), min_size=1, max_size=5, unique=True).map(sorted)
pairs = st.sets(st.tuples(st.integers(0, 9), st.integers(0, 5)))


@settings(max_examples=100, deadline=None)
@given(ids, st.integers(1, 6), pairs, st.integers(1, 20))
def test_every_missing_sample_is_asked_for_once(ids, samples, known, size):
    runs = list(missing_runs(np.array(ids), samples, known))
    asked = [(question, first + i) for question, first, count in runs for i in range(count)]
    wanted = [(question, sample) for question in ids for sample in range(samples)]
    assert asked == [key for key in wanted if key not in known]
    # Neighbours of a run are known: as few runs as can be.
    assert all((q, first - 1) not in asked and (q, first + count) not in asked for q, first, count in runs)
    if runs:
        parts = list(rounds(runs, size))
        assert [tuple(run) for part in parts for run in zip(*map(np.ndarray.tolist, part), strict=True)] == runs
        assert all(sum(counts) < size + samples for _, _, counts in parts)


def test_answers_that_the_verifier_failed_on_are_graded_again_without_a_sample(tmp_path):
    def record(sample, status):
        return {
            "question": 0, "sample": sample, "prompt": "", "reference": "5", "response": rf"\boxed{{{5 + sample}}}",
            "tokens": [1], "stopped": True, "status": status, "answer": str(5 + sample),
        }  # fmt: skip

    store = SampleStore(tmp_path, {})
    with store:
        store.write(record(0, "timeout"))
        store.write(record(1, "error"))
    with Grader("math", workers=1, deadline_seconds=5.0, memory_mib=1024, max_failure_rate=0.0) as grader:
        sampler = types.SimpleNamespace(
            grader=grader, config=types.SimpleNamespace(evaluation=types.SimpleNamespace(samples=2))
        )
        prompts = types.SimpleNamespace(ids=np.array([0]))
        records = draw(sampler, None, prompts, store, "sums")
    assert records == [record(0, "correct"), record(1, "wrong")]
    assert draw(sampler, None, prompts, store, "sums") == records
