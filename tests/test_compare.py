"""A comparison's runs: their order, where it goes on after a stop, what is refused, and a tiny real one."""

import gc
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from gvm_jax import compare
from gvm_jax.config import ConfigError, to_json
from gvm_jax.lab.variants import plan
from gvm_jax.runtime.metrics import read_metrics
from gvm_jax.runtime.preemption import Preempted
from gvm_jax.train import train
from tests.lab.test_comparison import write_run
from tests.test_train import OVERRIDES, small_config

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def trained():
    """Folders in the order in which `fake_train` was called for them."""
    return []


@pytest.fixture
def fake_train(trained):
    def run(config, folder):
        print("a line of the run")
        trained.append(f"{folder.parent.name}/{folder.name}")
        better = 0.1 * (config.allocation.strategy == "gvm")
        write_run(folder, [0.4, 0.5, 0.7 + better], seconds=(2.0,) * config.steps)
        (folder / "config.json").write_text(to_json(config))

    return run


def jobs_of(workdir, seeds=2, entries=("uniform", "gvm"), **overrides):
    config = small_config(steps=4, **overrides)
    variants = plan(config, entries)
    return compare.make_jobs(config, variants, seeds, workdir), variants


def test_seeds_take_turns_over_the_variants(tmp_path, trained, fake_train, capsys):
    jobs, _ = jobs_of(tmp_path, seeds=3, seed=5)
    compare.train_all(jobs, fake_train)
    assert trained == [f"{variant}/seed-{seed}" for seed in (5, 6, 7) for variant in ("uniform", "gvm")]
    assert [job.config.seed for job in jobs] == [5, 5, 6, 6, 7, 7]
    out = capsys.readouterr().out
    assert re.search(r"\[2/6\] gvm, seed 5: held-out 0.400 -> 0.800 in \d+ s; \d+ min to go", out)
    assert "a line of the run" not in out
    assert (tmp_path / "gvm/seed-5/train.log").read_text() == "a line of the run\n"


def test_a_stopped_comparison_goes_on_where_it_was(tmp_path, trained, fake_train):
    calls = 0

    def stopped_in_the_third(config, folder):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Preempted("stopped")
        fake_train(config, folder)

    jobs, variants = jobs_of(tmp_path)
    with pytest.raises(Preempted):
        compare.train_all(jobs, stopped_in_the_third)
    assert trained == ["uniform/seed-0", "gvm/seed-0"]
    compare.report(jobs, variants, "name", tmp_path, None)
    assert json.loads((tmp_path / "comparison.json").read_text())["seeds"] == [0]
    jobs, variants = jobs_of(tmp_path)  # the same command again
    compare.train_all(jobs, fake_train)
    assert trained == ["uniform/seed-0", "gvm/seed-0", "uniform/seed-1", "gvm/seed-1"]
    compare.train_all(jobs, fake_train)
    assert len(trained) == 4
    compare.report(jobs, variants, "name", tmp_path, None)
    assert json.loads((tmp_path / "comparison.json").read_text())["seeds"] == [0, 1]


def test_more_seeds_and_more_variants_join_those_that_are_done(tmp_path, trained, fake_train):
    compare.train_all(jobs_of(tmp_path, seeds=1)[0], fake_train)
    compare.train_all(jobs_of(tmp_path, seeds=2, entries=["uniform", "gvm", "cures"])[0], fake_train)
    assert trained[2:] == ["cures/seed-0", "uniform/seed-1", "gvm/seed-1", "cures/seed-1"]


def test_there_is_no_report_before_every_variant_has_a_seed(tmp_path, fake_train):
    jobs, variants = jobs_of(tmp_path)
    fake_train(jobs[0].config, jobs[0].folder)
    assert compare.report(jobs, variants, "name", tmp_path, None) is None
    fake_train(jobs[1].config, jobs[1].folder)
    assert "+0.100" in compare.report(jobs, variants, "name", tmp_path, None)


def test_other_settings_in_the_same_folder_are_refused_before_training(tmp_path, fake_train):
    compare.train_all(jobs_of(tmp_path)[0], fake_train)
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate: 0\.0002 -> 0\.1"):
        jobs_of(tmp_path, **{"optimizer.learning_rate": 0.1})
    config = small_config(steps=3)
    with pytest.raises(ConfigError, match="has 4 steps, more than steps = 3"):
        compare.make_jobs(config, plan(config, ["uniform", "gvm"]), 1, tmp_path)
    assert json.loads((tmp_path / "gvm/seed-0/config.json").read_text())["steps"] == 4
    with pytest.raises(ConfigError, match="is the folder of a run"):
        jobs_of(tmp_path / "gvm/seed-0")


def command(workdir, *flags):
    """The command with the config of `tests/test_train.py`."""
    overrides = [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
    config = f"--config={ROOT / 'configs/quickstart.py'}"
    return [sys.executable, "-m", "gvm_jax.compare", config, f"--workdir={workdir}", *overrides, *flags]


def run_command(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")}
    return subprocess.run(command(*arguments), env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--strategies=uniform,gvn"], "error: gvn: unknown strategy 'gvn'; use one of"),
        (["--seeds=0"], "error: --seeds=0: must be an integer >= 1"),
        (["--target=1.5"], "error: --target=1.5: must be an accuracy"),
        (["--config.evaluation.path="], "error: evaluation.path = '': a comparison needs held-out problems"),
        (["--config.rollouts_per_step=4"], "error: uniform: rollouts_per_step = 4: must be >= prompts_per_step"),
        (["--sweep=allocation.gamma:1"], "error: gvm:allocation.gamma=1: unknown field 'allocation.gamma'"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_bad_input_is_one_clear_line(flags, message, tmp_path):
    done = run_command(tmp_path / "compared", *flags)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "compared").exists()


@pytest.mark.slow
def test_a_run_leaves_no_processes_and_few_arrays(tmp_path):
    """Comparisons train many runs in one process."""
    small = {"steps": 1, "evaluation.every": 1}

    def train_once(name):
        config = small_config(**small)
        variant = plan(config, ["gvm"])[0]
        compare.train_all(compare.make_jobs(config, [variant], 1, tmp_path / name), train)
        gc.collect()
        children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return len(jax.live_arrays()), children

    arrays, children = train_once("first")
    assert train_once("second") == (arrays, children)


@pytest.mark.slow
def test_the_command_trains_and_compares(tmp_path):
    workdir = tmp_path / "compared"
    flags = ["--strategies=uniform,gvm", "--seeds=1", "--config.steps=2", "--config.evaluation.every=1"]
    done = run_command(workdir, *flags)
    assert done.returncode == 0, done.stderr
    assert "[2/2] gvm, seed 0: held-out" in done.stdout and "Held-out accuracy, 1 seed:" in done.stdout
    assert "accept rate" in (workdir / "uniform/seed-0/train.log").read_text() and "accept rate" not in done.stdout
    result = json.loads((workdir / "comparison.json").read_text())
    first, second = result["variants"]
    assert (first["label"], second["label"], second["baseline"]) == ("uniform", "gvm", "uniform")
    assert first["curve"]["accuracy"][0] == second["curve"]["accuracy"][0]  # the same samples of the same model
    for variant in ("uniform", "gvm"):
        row = read_metrics(workdir / variant / "seed-0")[-1]
        assert (row["step"], row["total/rollouts"], row["total/updates"]) == (2, 64, 4)
    again = run_command(workdir, *flags)
    assert again.stdout.count("done before") == 2 and "Held-out accuracy, 1 seed:" in again.stdout
