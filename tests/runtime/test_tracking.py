"""A run at Weights & Biases, whose package is a stand-in here."""

import math
import sys
import types

import numpy as np
import pytest

from configs import quickstart
from gvm_jax import train as train_module
from gvm_jax.config import ConfigError
from gvm_jax.runtime.progress import ProgressPrinter
from gvm_jax.runtime.tracking import Tracker, load_wandb
from gvm_jax.training.journal import Journal, Totals


class Run:
    def __init__(self):
        self.lines, self.metrics, self.exit_code = [], {}, None

    def define_metric(self, name, step_metric=None):
        self.metrics[name] = step_metric

    def log(self, values):
        self.lines.append(values)

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    """The package, with the arguments of each `init` in `started`."""
    package = types.ModuleType("wandb")
    package.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    package.Settings = dict
    package.started = []

    def init(**arguments):
        package.started.append(arguments)
        return Run()

    package.init = init
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


@pytest.fixture
def config():
    config = quickstart.get_config()
    config.wandb.project = "sums"
    return config


def test_steps_and_evaluations_go_there_under_tensorboards_names(wandb, config, tmp_path, monkeypatch):
    (tmp_path / "runs/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    tracker = Tracker(wandb, "runs/mine/", tmp_path, config)
    journal = Journal(tmp_path, ProgressPrinter(3, active=False), Totals(), 5, None, active=True, tracker=tracker)
    journal.evaluation(0, {"accuracy": 0.25}, {"evaluation": 2.0})
    journal._write(1, {"reward/mean": np.float32(0.5), "train/loss": math.nan})
    journal.close()
    tracker.close(complete=True)
    (started,), run = wandb.started, tracker._run
    assert (started["project"], started["name"]) == ("sums", "mine")
    assert started["config"]["optimizer"]["learning_rate"] == 2e-4 and started["dir"] == str(tmp_path)
    assert run.metrics == {"step": None, "*": "step"}
    evaluation, step = run.lines
    assert evaluation["step"] == 0 and evaluation["evaluation/accuracy"] == 0.25
    assert evaluation["evaluation/total/seconds"] == 2.0
    assert step == {"step": 1, "reward/mean": 0.5}, "what is not finite is left out"
    assert run.exit_code == 0


def test_a_workdir_stays_the_same_run_and_another_is_another(wandb, config, tmp_path):
    folders = [tmp_path / name for name in ("a", "a", "b")]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        tracker = Tracker(wandb, folder, folder, config)
    tracker.close(complete=False)
    assert tracker._run.exit_code == 1, "shown as failed until it is resumed"
    first, again, other = (started["id"] for started in wandb.started)
    assert first == again != other
    assert all(started["resume"] == "allow" for started in wandb.started)


def test_what_it_refuses_is_an_error_that_names_the_field(wandb, config, tmp_path):
    def init(**_):
        raise wandb.errors.Error("No API key\nconfigured.")

    wandb.init = init
    with pytest.raises(ConfigError, match=r"wandb.project = 'sums': No API key configured. .*WANDB_MODE=offline"):
        Tracker(wandb, tmp_path, tmp_path, config)


def test_without_the_package_nothing_is_started(monkeypatch, config, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails
    monkeypatch.setattr(train_module, "Trainer", lambda *_: pytest.fail("the run was built"))
    with pytest.raises(ConfigError, match=r"wandb.project = 'sums': .*pip install -e '.\[wandb\]'"):
        train_module.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert load_wandb("") is None
