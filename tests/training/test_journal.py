"""What a step's line of the metrics holds."""

import dataclasses

import numpy as np
import pytest

from gvm_jax.allocation.allocator import AllocationInfo
from gvm_jax.allocation.diagnostics import Diagnostics
from gvm_jax.rollout.policy import SampleStats
from gvm_jax.runtime.metrics import read_rows
from gvm_jax.runtime.progress import ProgressPrinter
from gvm_jax.training.journal import Journal, Totals, step_scalars
from gvm_jax.training.sampler import GradedRollouts
from gvm_jax.training.step import StepMetrics


def make_diagnostics(**values) -> Diagnostics:
    fields = dict.fromkeys((field.name for field in dataclasses.fields(Diagnostics)), 0.1)
    return Diagnostics(**fields | {"brier_constant": 0.2, "measured_gain": 1.2, "norm_correlation": 0.5} | values)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({}, "min_samples"),
        ({"brier": 0.3}, "mode = pilot"),
        ({"norm_correlation": 0.0}, "gvm_rates"),
        ({"cap_share": 0.9, "brier": 0.3}, "max_samples: raise it"),
    ],
)
def test_counts_that_do_worse_than_equal_ones_are_warned_of_with_the_likely_cause(values, cause, tmp_path, caplog):
    journal = Journal(tmp_path, ProgressPrinter(50, active=False), Totals(), 5, None, active=False)
    for step in range(1, 21):
        journal._advise(step, make_diagnostics(measured_gain=0.8, **values))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and all("worse than equal ones" in m and cause in m for m in messages)
    assert messages[1].startswith("steps 11 to 20")
    caplog.clear()
    for step in range(21, 41):
        journal._advise(step, make_diagnostics(**values))
    assert not caplog.records


def test_truncated_weights_are_reported_where_rollouts_are_corrected(make_rollouts):
    graded = GradedRollouts(make_rollouts([1, 2]), np.ones(3, np.float32), np.zeros(3, np.int32), SampleStats())
    fields = {field.name: np.zeros(2) for field in dataclasses.fields(StepMetrics)}
    fields["allocation"] = AllocationInfo(*[np.zeros(2)] * len(dataclasses.fields(AllocationInfo)))
    fields["diagnostics"] = make_diagnostics()
    with_cap = step_scalars(graded, StepMetrics(**fields | {"truncated_weights": np.float32(0.25)}), {})
    without = step_scalars(graded, StepMetrics(**fields | {"truncated_weights": None}), {})
    assert with_cap["train/truncated_weights"] == 0.25
    assert with_cap.keys() - without.keys() == {"train/truncated_weights"}


def step_metrics(**values) -> StepMetrics:
    fields = {field.name: np.zeros(2) for field in dataclasses.fields(StepMetrics)}
    fields["allocation"] = AllocationInfo(*[np.zeros(2)] * len(dataclasses.fields(AllocationInfo)))
    fields["diagnostics"] = make_diagnostics()
    fields |= {name: np.float32(0) for name in ("loss", "gradient_norm", "trained_tokens", "skipped_updates")}
    return StepMetrics(**fields | {"truncated_weights": None, "measured_norms": np.int32(0)} | values)


def test_too_many_updates_left_out_stop_the_run_with_the_batch_kept(make_rollouts, tmp_path, caplog):
    rollouts = make_rollouts([1, 2])
    graded = GradedRollouts(rollouts, np.ones(3, np.float32), np.zeros(3, np.int32), SampleStats())
    ids = np.array([7, 9], np.int32)
    journal = Journal(tmp_path, ProgressPrinter(50, active=False), Totals(), 5, None, active=True)
    bad = {"loss": np.float32(np.nan), "gradient_norm": np.float32(np.inf), "skipped_updates": np.int32(3)}
    scalar_fields = ("clip_fraction", "entropy", "kl", "mismatch", "max_mismatch", "packing_efficiency")
    bad |= {name: np.float32(0) for name in scalar_fields}
    bad["allocation"] = AllocationInfo(
        **{f.name: np.float32(0) if "ratio" in f.name else np.zeros(2) for f in dataclasses.fields(AllocationInfo)}
    )
    journal.step(ids, graded, step_metrics(**bad, skipped_in_a_row=np.int32(3)), 4, {})
    assert "step 1: 3 updates were left out" in caplog.text and "the run stops at 5" in caplog.text
    with pytest.raises(FloatingPointError, match=r"optimizer\.max_skipped_updates = 5") as raised:
        journal.step(ids, graded, step_metrics(**bad, skipped_in_a_row=np.int32(6)), 4, {})
    journal.close()
    path = tmp_path / "skipped/step-2.npz"
    assert "kept in skipped/step-2.npz" in str(raised.value) and not list(tmp_path.glob("skipped/*.tmp"))
    with np.load(path) as batch:
        assert set(batch) == {field.name for field in dataclasses.fields(rollouts)} | {"prompt_ids", "rewards"}
        np.testing.assert_array_equal(batch["tokens"], rollouts.tokens)
        np.testing.assert_array_equal(batch["logprobs"], rollouts.logprobs)
        np.testing.assert_array_equal(batch["prompt_ids"][batch["group"]], [7, 9, 9])
        np.testing.assert_array_equal(batch["rewards"], [1, 1, 1])
    rows = read_rows(tmp_path)
    assert [(row["train/skipped_updates"], row["total/skipped_updates"], row["total/updates"]) for row in rows] == [
        (3, 3, 1),
        (3, 6, 2),
    ]
    assert np.isnan(rows[0]["train/loss"])
