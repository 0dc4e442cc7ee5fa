"""Training on two workers of a pod: as on one, and as if none had been killed in the middle of a step."""

import os
import signal
import time

import pytest

from gvm_jax.runtime.metrics import read_rows
from gvm_jax.train import train
from tests.test_pod import ROOT, Machine
from tests.test_train import OVERRIDES, final_state, small_config, without_times


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path, "-m gvm_jax.train")
    machine("create")
    machine("setup")
    yield machine
    machine.close()


@pytest.mark.slow
def test_a_run_with_a_killed_worker_ends_as_an_undisturbed_one(machine):
    def flags(workdir):
        # The default is in the checkout, which the stand-in's workers have in home folders of different names.
        fields = OVERRIDES | {"steps": 2, "model.path": ROOT / "configs/quickstart_model"}
        overrides = [f"--config.{name}={value}" for name, value in fields.items()]
        return ["--config=configs/quickstart.py", f"--workdir={workdir}", *overrides]

    undisturbed, disturbed = machine.folder / "undisturbed", machine.folder / "disturbed"
    machine("run", *flags(undisturbed), seconds=400)

    alone = machine.folder / "alone"
    train(small_config(steps=2), alone)  # one process with four devices
    for one, two in zip(*[without_times(read_rows(workdir)) for workdir in (alone, undisturbed)], strict=True):
        assert one == pytest.approx(two, rel=1e-5, abs=1e-5, nan_ok=True)
    for one, two in zip(*[read_rows(workdir, "allocation") for workdir in (alone, undisturbed)], strict=True):
        assert one["count"] == two["count"] and one["accept_rate"] == pytest.approx(two["accept_rate"], nan_ok=True)

    running = machine.start("run", *flags(disturbed))
    while running.poll() is None and not ((disturbed / "metrics.jsonl").exists() and read_rows(disturbed)):
        time.sleep(0.05)
    time.sleep(0.3)  # into the second of two steps
    os.kill(machine.trainer(1), signal.SIGKILL)
    output, _ = running.communicate(timeout=400)
    assert running.returncode == 0, output
    assert "process 1" in output and "is gone: its connection closed" in output
    assert "starting again from the last checkpoint (1 of 3)" in output

    assert final_state(disturbed) == final_state(undisturbed)
    for read in (read_rows, lambda workdir: read_rows(workdir, "allocation")):
        assert without_times(read(disturbed)) == without_times(read(undisturbed))
