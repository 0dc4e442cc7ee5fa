"""A whole run comes to the same on one device and on a mesh that splits data, parameters and tensors."""

import os
import subprocess

import pytest

from gvm_jax.runtime.metrics import read_rows
from tests.test_train import command, environment, without_times


def run(workdir, size):
    """Metrics and allocation of a run on a mesh of `size` devices along each axis, in a process with so many."""
    flags = ["--config.steps=2", *(f"--config.mesh.{axis}={size}" for axis in ("data", "fsdp", "tensor"))]
    xla_flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={size**3}"  # the last one counts
    variables = environment() | {"XLA_FLAGS": xla_flags}
    done = subprocess.run(command(workdir, *flags), env=variables, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return without_times(read_rows(workdir)), read_rows(workdir, "allocation")


@pytest.mark.slow
def test_a_run_on_eight_devices_equals_one_on_a_single_device(tmp_path):
    runs = [run(tmp_path / str(size), size) for size in (1, 2)]
    for one, several in zip(*(metrics for metrics, _ in runs), strict=True):
        assert several == pytest.approx(one, rel=1e-5, abs=1e-5, nan_ok=True)
    for one, several in zip(*(allocation for _, allocation in runs), strict=True):
        assert several["count"] == one["count"]
        assert several["accept_rate"] == pytest.approx(one["accept_rate"], nan_ok=True)
