"""The planner from the command line."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
QUICKSTART = f"--config={ROOT / 'configs/quickstart.py'}"


def plan(*arguments):
    """Runs the command; its exit status, output and errors."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "gvm_jax.plan", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def test_a_config_that_fits_ends_with_0():
    code, out, errors = plan(QUICKSTART, "--topology=h100:2", "--config.mesh.data=1", "--config.mesh.fsdp=2")
    assert code == 0, errors
    assert "train step" in out and out.splitlines()[-1].startswith("fits: ")


def test_a_config_that_does_not_fit_ends_with_1_and_names_what_to_change(tmp_path):
    shape = json.loads((ROOT / "configs/quickstart_model/config.json").read_text())
    shape |= {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "vocab_size": 152064}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    code, out, errors = plan(QUICKSTART, "--topology=h100:1", f"--config.model.path={tmp_path}")
    assert code == 1, errors
    assert "does not fit: needs" in out and "change: " in out and "--config." in out


def test_a_wrong_question_ends_with_2_and_one_line():
    code, _, errors = plan(QUICKSTART, "--topology=h100:1", "--search")
    assert code == 2 and errors.startswith("error: --search") and len(errors.splitlines()) == 1


@pytest.mark.slow
def test_every_program_is_compiled_for_a_tpu():
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install '.[tpu]'")
    code, out, errors = plan(
        QUICKSTART, "--topology=v5e:2x2", "--config.mesh.data=1", "--config.mesh.fsdp=4", "--config.rollout.slots=16",
        "--config.model.compute_dtype=bfloat16",
    )  # fmt: skip
    assert code == 0, errors
    for text in ("prefill", "decode 16", "train step", "roofline ms", "Collectives of a train step", "replicated: no"):
        assert text in out
    assert "compiling" in errors
