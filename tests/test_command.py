"""Mistakes in a command's flags: one line, exit code 2."""

import subprocess
import sys

import pytest

from tests.test_train import ROOT, environment

QUICKSTART = "--config=configs/quickstart.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train", "--config is missing: give --config=configs/quickstart.py; --help lists the flags"),
        ("train --config=nope.py", "--config=nope.py: no such file; name one of configs/"),
        ("train --confi=3", "Unknown command line flag 'confi'. Did you mean: config ?"),
        (f"train {QUICKSTART}:rafft", "must be one of raft, gvm_raft, grpo, gvm_grpo; did you mean raft?"),
        (f"train {QUICKSTART} --config.stepz=3", "--config.stepz: no such field; did you mean --config.steps?"),
        (f"train {QUICKSTART} --config.steps=x", "--config.steps=x: invalid literal for int"),
        (f"train {QUICKSTART} --workdir=", "--workdir= is empty; name a folder"),
        (f"compare {QUICKSTART} x", "unexpected argument 'x'; options are written --name=value"),
        (f"plan {QUICKSTART}", "--topology is missing: give --topology=VALUE"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message):
    command = [sys.executable, "-m", *f"gvm_jax.{arguments}".split()]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and message in line


def test_help_is_no_error():
    done = subprocess.run(
        [sys.executable, "-m", "gvm_jax.train", "--help"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0 and "--workdir" in done.stdout


def test_the_report_of_no_run_says_so(tmp_path):
    command = [sys.executable, "-m", "gvm_jax.report", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1 and f"error: {tmp_path}: is not the folder of a run" in done.stderr
