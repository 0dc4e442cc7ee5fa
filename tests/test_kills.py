"""A run that is killed again and again ends in the same bits as one that nothing disturbed.

`GVM_JAX_KILLS=20 pytest -s tests/test_kills.py` kills more often, and prints when.
"""

import os
import random
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gvm_jax.runtime.metrics import read_rows
from tests.runtime.processes import CACHED, ROOT, SMALL_RUN

KILLS = int(os.environ.get("GVM_JAX_KILLS", "3"))
STEPS = max(4, 3 * KILLS // 2)
OVERRIDES = SMALL_RUN | {"steps": STEPS, "evaluation.every": 2, "checkpoint.every": 2}
MOMENTS = {  # and how often it comes in two steps, at least
    "rollout": 8,
    "during the update": 2,
    "at the commit": 1,
    "in a record's line": 4,
    "grading": 2,
    "at the start of saving": 1,
    "any": 0,
    "update": 2,
    "after saving": 1,
    "before the record": 2,
    "evaluation": 1,
    "before saving": 2,
}


def run(workdir, moment, count=0):
    fields = [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
    config = f"--config={ROOT / 'configs/quickstart.py'}"
    command = [sys.executable, ROOT / "tests/dying_run.py", moment, str(count), config, f"--workdir={workdir}", *fields]
    environment = os.environ | CACHED | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def record(workdir, table):
    rows = read_rows(workdir, table)
    return [{k: v for k, v in row.items() if "seconds" not in k and "host/" not in k} for row in rows]


def newest_state(workdir):
    """Bytes of every array of the newest checkpoint, by path: parameters, optimizer, statistics, counts."""
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    state = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / "state")
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return step, {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def progress(workdir):
    if not (workdir / "metrics.jsonl").exists():
        return "nothing recorded"
    recorded = len((workdir / "metrics.jsonl").read_text().splitlines())
    saved = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    return f"{recorded} lines recorded, saved {saved}"


@pytest.mark.slow
def test_a_run_killed_at_many_moments_ends_in_the_same_bits(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    done = run(undisturbed, "never")
    assert done.returncode == 0, done.stderr
    draw, moments = random.Random(0), []
    for number in range(KILLS):
        moment = list(MOMENTS)[number % len(MOMENTS)]
        count = draw.randint(1, MOMENTS[moment]) if MOMENTS[moment] else draw.randint(50, 600)
        done = run(killed, moment, count)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        moments.append(f"{number + 1:3} {moment}, {count}: exit {done.returncode}, {progress(killed)}")
        print(moments[-1], flush=True)
    done = run(killed, "never")
    assert done.returncode == 0, done.stderr
    assert sum("exit -9" in line for line in moments) >= 0.75 * KILLS, moments
    for table in ("metrics", "evaluation", "allocation", "samples"):
        assert record(killed, table) == record(undisturbed, table), table
    assert [row["step"] for row in record(killed, "metrics")] == list(range(1, STEPS + 1))
    step, state = newest_state(killed)
    assert step == STEPS and (step, state) == newest_state(undisturbed)
