"""A whole run comes to the same on any number of devices and any mesh of them."""

import subprocess

import pytest

from gvm_jax.runtime.metrics import read_metrics, read_rows
from tests.test_train import command, environment, without_times


def run(workdir, data=1, fsdp=1, tensor=1):
    axes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    flags = [f"--config.mesh.{axis}={size}" for axis, size in axes.items()]
    devices = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={data * fsdp * tensor}"}
    done = subprocess.run(
        command(workdir, *flags), env=environment() | devices, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return without_times(read_metrics(workdir)), read_rows(workdir, "allocation")


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"fsdp": 2}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_run_on_several_devices_equals_one_on_a_single_device(on_one_device, mesh, tmp_path):
    metrics, allocation = run(tmp_path, **mesh)
    for one, several in zip(on_one_device[0], metrics, strict=True):
        assert several == pytest.approx(one, rel=1e-5, abs=1e-5, nan_ok=True)
    for one, several in zip(on_one_device[1], allocation, strict=True):
        assert several["count"] == one["count"]
        assert several["accept_rate"] == pytest.approx(one["accept_rate"], nan_ok=True)
