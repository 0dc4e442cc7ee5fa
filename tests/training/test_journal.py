"""What a step's line of the metrics holds."""

import dataclasses

import numpy as np

from gvm_jax.allocation.allocator import AllocationInfo
from gvm_jax.rewards import Status, Verdict
from gvm_jax.training.journal import step_scalars
from gvm_jax.training.run import Graded
from gvm_jax.training.step import StepMetrics


def test_truncated_weights_are_reported_where_rollouts_are_corrected(make_rollouts):
    graded = Graded(make_rollouts([1, 2]), [Verdict(1.0, Status.CORRECT, "1")] * 3)
    fields = {field.name: np.zeros(2) for field in dataclasses.fields(StepMetrics)}
    fields["allocation"] = AllocationInfo(*[np.zeros(2)] * len(dataclasses.fields(AllocationInfo)))
    with_cap = step_scalars(graded, StepMetrics(**fields | {"truncated_weights": np.float32(0.25)}), {})
    without = step_scalars(graded, StepMetrics(**fields | {"truncated_weights": None}), {})
    assert with_cap["train/truncated_weights"] == 0.25
    assert with_cap.keys() - without.keys() == {"train/truncated_weights"}
