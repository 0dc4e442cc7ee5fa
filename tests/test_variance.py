"""The variance study as one function, on the quickstart's model."""

import json

import jax
import numpy as np
import pytest

from gvm_jax.config import ConfigError
from gvm_jax.lab.frozen_step import FrozenPolicy
from gvm_jax.lab.study import study
from gvm_jax.runtime.checkpoint import Checkpointer
from gvm_jax.training.trainer import Trainer
from tests.test_train import small_config


@pytest.mark.slow
def test_a_pool_is_drawn_and_strategies_are_studied(tmp_path, capsys):
    entries = ["uniform", "gvm@true_statistics"]
    small = {"prompts": 6, "samples": 6, "sketch": 64, "repetitions": 32, "visits": 1}
    found = study(small_config(), tmp_path, entries, **small)
    out = capsys.readouterr().out
    assert "6/6 prompts x 6 samples" in out and "1 + CV²" in out
    read = json.loads((tmp_path / "variance.json").read_text())
    assert [row["label"] for row in read["results"]] == [result.label for result in found.results] == entries
    assert (tmp_path / "variance.txt").read_text() in out and (tmp_path / "plots/variance.png").exists()


def test_an_unknown_entry_is_an_error_before_anything_is_drawn(tmp_path):
    with pytest.raises(ConfigError, match=r"gvm2: allocation.strategy = 'gvm2': unknown; use one of uniform, gvm, "):
        study(small_config(), tmp_path / "study", ["uniform", "gvm2"])
    assert not (tmp_path / "study").exists()


def test_the_policy_of_a_checkpoint_is_loaded(tmp_path):
    with Trainer(small_config(**{"evaluation.path": ""})) as run:
        state = run.initial_state()
        policy = FrozenPolicy(run)
        jax.tree.map(np.testing.assert_array_equal, policy.params, state.params)
        assert policy.step == 0
        moved = state.replace(params=jax.tree.map(lambda x: x + 1, state.params))
        checkpointer = Checkpointer(tmp_path, every=1, keep=1)
        checkpointer.save(3, moved, {})
        checkpointer.close()
        policy = FrozenPolicy(run, str(tmp_path))
        assert policy.step == 3
        jax.tree.map(np.testing.assert_array_equal, policy.params, moved.params)
        with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
            FrozenPolicy(run, str(tmp_path / "nothing"))
