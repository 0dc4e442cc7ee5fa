"""Training on two workers of a pod: one is killed in the middle of a step, and the run ends as if it had not been."""

import os
import signal
import time

import pytest

from gvm_jax.runtime.metrics import read_metrics, read_rows
from tests.test_pod import ROOT, Machine
from tests.test_train import OVERRIDES, final_state, without_times


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path, "-m gvm_jax.train")
    machine.environment["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".jax_cache")
    machine("create")
    machine("setup")
    yield machine
    machine.close()


@pytest.mark.slow
def test_a_run_with_a_killed_worker_ends_as_an_undisturbed_one(machine):
    def flags(workdir):
        # The default is in the checkout, which the stand-in's workers have in home folders of different names.
        fields = OVERRIDES | {"model.path": ROOT / "configs/quickstart_model"}
        overrides = [f"--config.{name}={value}" for name, value in fields.items()]
        return ["--config=configs/quickstart.py", f"--workdir={workdir}", *overrides]

    undisturbed, disturbed = machine.folder / "undisturbed", machine.folder / "disturbed"
    machine("run", *flags(undisturbed), seconds=400)

    running = machine.start("run", *flags(disturbed))
    while running.poll() is None and not ((disturbed / "metrics.jsonl").exists() and read_metrics(disturbed)):
        time.sleep(0.05)
    time.sleep(0.3)  # into the second of three steps
    os.kill(machine.trainer(1), signal.SIGKILL)
    output, _ = running.communicate(timeout=400)
    assert running.returncode == 0, output
    assert "process 1" in output and "is gone: its connection closed" in output
    assert "starting again from the last checkpoint (1 of 3)" in output

    assert final_state(disturbed) == final_state(undisturbed)
    for read in (read_metrics, lambda workdir: read_rows(workdir, "allocation")):
        assert without_times(read(disturbed)) == without_times(read(undisturbed))
