"""The variance study from the command line, on the quickstart's model."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from gvm_jax.runtime.checkpoint import Checkpointer
from gvm_jax.training.trainer import Trainer
from gvm_jax.variance import load_policy
from tests.test_train import OVERRIDES, small_config

ROOT = pathlib.Path(__file__).parent.parent


def study(workdir, *arguments):
    """Runs the command; its exit code, output and errors."""
    config = f"--config={ROOT / 'configs/quickstart.py'}"
    overrides = [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
    small = ["--prompts=6", "--samples=6", "--sketch=64", "--repetitions=32", "--visits=1"]
    command = [sys.executable, "-m", "gvm_jax.variance", config, f"--workdir={workdir}", *overrides, *small, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_a_pool_is_drawn_and_strategies_are_studied(tmp_path):
    code, out, errors = study(tmp_path, "--strategies=uniform,gvm@told")
    assert code == 0, errors
    assert "6/6 prompts x 6 samples" in out and "1 + CV²" in out
    read = json.loads((tmp_path / "variance.json").read_text())
    assert [row["label"] for row in read["strategies"]] == ["uniform", "gvm@told"]
    assert (tmp_path / "variance.txt").read_text() in out and (tmp_path / "plots/variance.png").exists()


def test_an_unknown_entry_is_an_error_before_anything_is_drawn(tmp_path):
    code, _, errors = study(tmp_path, "--strategies=uniform,gvm2")
    assert code == 2 and errors.startswith("error: gvm2: unknown strategy 'gvm2'; use one of uniform, gvm, ")
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]


def test_the_policy_of_a_checkpoint_is_loaded(tmp_path):
    with Trainer(small_config(**{"evaluation.path": ""})) as run:
        state = run.initial_state()
        params, step = load_policy(run, None)
        jax.tree.map(np.testing.assert_array_equal, params, state.params)
        assert step == 0
        moved = state.replace(params=jax.tree.map(lambda x: x + 1, state.params))
        checkpointer = Checkpointer(tmp_path, every=1, keep=1)
        checkpointer.save(3, moved, {})
        checkpointer.close()
        params, step = load_policy(run, str(tmp_path))
        assert step == 3
        jax.tree.map(np.testing.assert_array_equal, params, moved.params)
        with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
            load_policy(run, str(tmp_path / "nothing"))
