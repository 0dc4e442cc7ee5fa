"""A comparison's runs: their order, where it goes on after a stop, what is refused, and a tiny real one."""

import functools
import gc
import json
import os
import pathlib
import re

import jax
import pytest

from gvm_jax.config import ConfigError, to_json
from gvm_jax.lab.compare import compare_strategies
from gvm_jax.runtime.metrics import read_rows
from gvm_jax.runtime.preemption import Preempted
from gvm_jax.train import train
from tests.lab.test_learning_curves import write_run
from tests.test_train import small_config


class FakeTraining:
    """Writes the records of runs; raises at the run whose number is `stop_at`."""

    def __init__(self):
        self.folders, self.stop_at = [], 0

    def __call__(self, config, folder):
        if len(self.folders) + 1 == self.stop_at:
            raise Preempted("stopped")
        print("a line of the run")
        self.folders.append(f"{folder.parent.name}/{folder.name}")
        better = 0.1 * (config.allocation.strategy == "gvm")
        write_run(folder, [0.4, 0.5, 0.7 + better], seconds=(2.0,) * config.steps)
        (folder / "config.json").write_text(to_json(config))


@pytest.fixture
def training():
    return FakeTraining()


@pytest.fixture
def compare(tmp_path, training):
    """`compare_strategies` of four steps with two seeds."""

    def run(entries=("uniform", "gvm"), folder="", seeds=2, steps=4, options=(), **fields):
        config = small_config(steps=steps, **fields)
        return compare_strategies(config, tmp_path / folder, training, entries, seeds=seeds, **dict(options))

    return run


def seeds_of(workdir):
    return json.loads((workdir / "comparison.json").read_text())["seeds"]


def test_seeds_take_turns_over_the_variants(compare, training, tmp_path, capsys):
    assert "+0.100" in compare(seeds=3, seed=5)
    assert training.folders == [f"{variant}/seed-{seed}" for seed in (5, 6, 7) for variant in ("uniform", "gvm")]
    out = capsys.readouterr().out
    assert re.search(r"\[2/6\] gvm, seed 5: held-out 0.400 -> 0.800 in \d+ s; \d+ min to go", out)
    assert "a line of the run" not in out
    assert (tmp_path / "gvm/seed-5/train.log").read_text() == "a line of the run\n"


def test_a_stopped_comparison_reports_what_is_done_and_goes_on(compare, training, tmp_path):
    for stop_at, reported in ((2, None), (3, [0]), (0, [0, 1])):  # without a seed of all variants there is no report
        training.stop_at = stop_at
        if stop_at:
            with pytest.raises(Preempted):
                compare()
        else:
            compare()
        assert (seeds_of(tmp_path) if (tmp_path / "comparison.json").exists() else None) == reported
    assert training.folders == ["uniform/seed-0", "gvm/seed-0", "uniform/seed-1", "gvm/seed-1"]
    compare(["uniform", "gvm", "cures"])
    assert training.folders[4:] == ["cures/seed-0", "cures/seed-1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entries": ["uniform", "gvn"]}, "gvn: allocation.strategy = 'gvn': unknown; use one of"),
        ({"seeds": 0}, "--seeds=0: must be an integer >= 1"),
        ({"options": {"target": 1.5}}, "--target=1.5: must be an accuracy"),
        ({"evaluation.path": ""}, "evaluation.path = '': a comparison needs held-out problems"),
        ({"rollouts_per_step": 4}, "uniform: rollouts_per_step = 4: must be >= prompts_per_step"),
        ({"options": {"sweep": "allocation.gamma:1"}}, "gvm:allocation.gamma=1: unknown field 'allocation.gamma'"),
        ({"optimizer.learning_rate": 0.1, "folder": "done"}, "optimizer.learning_rate: 0.0002 -> 0.1"),
        ({"steps": 3, "folder": "done"}, "has 4 steps, more than steps = 3"),
        ({"folder": "done/gvm/seed-0"}, "is the folder of a run"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_training(changes, message, compare, training, tmp_path):
    if folder := changes.get("folder"):
        compare(folder="done", seeds=1)
    trained = len(training.folders)
    with pytest.raises(ConfigError, match=re.escape(message)):
        compare(**changes)
    assert len(training.folders) == trained and (folder or not list(tmp_path.iterdir()))


@pytest.mark.slow
def test_strategies_are_trained_and_compared_without_leaving_processes_or_arrays(tmp_path, capsys):
    config = small_config(**{"steps": 2, "evaluation.every": 1})
    compare = functools.partial(compare_strategies, config, tmp_path, train, seeds=1)

    def left():
        gc.collect()
        children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return len(jax.live_arrays()), children

    compare(["uniform"])
    before = left()
    compare(["uniform", "gvm"])
    assert left() == before
    out = capsys.readouterr().out
    assert "[2/2] gvm, seed 0: held-out" in out and out.count("done before") == 1
    assert "accept rate" in (tmp_path / "uniform/seed-0/train.log").read_text() and "accept rate" not in out
    first, second = json.loads((tmp_path / "comparison.json").read_text())["variants"]
    assert (first["label"], second["label"], second["baseline"]) == ("uniform", "gvm", "uniform")
    starts = [read_rows(tmp_path / name / "seed-0", "evaluation")[0]["accuracy"] for name in ("uniform", "gvm")]
    assert starts[0] == starts[1]  # the same samples of the same model
    for variant in ("uniform", "gvm"):
        row = read_rows(tmp_path / variant / "seed-0", "metrics")[-1]
        assert (row["step"], row["total/rollouts"], row["total/updates"]) == (2, 64, 4)
