"""Engines in processes: turns, silence of the idle, memory, errors and the end."""

import ast
import dataclasses
import os
import pathlib
import signal
import sys
import time

import pytest

from gvm_jax.benchmark.engine_comparison import alternate, compare
from gvm_jax.benchmark.engine_process import ENGINES, TASKS, BenchmarkError, EngineProcess
from gvm_jax.benchmark.workloads import Workload

WORKLOAD = Workload("fake", [[1, 2], [3, 4]], [2, 1], 4, [], 0)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def start(fake, tmp_path, monkeypatch):
    """Starts a fake engine that does as it is told."""

    monkeypatch.setenv("PYTHONPATH", "not/for/peers")

    def start(name="fake", told="") -> EngineProcess:
        WORKLOAD.write(tmp_path / "workload.json", {"told": told})
        return EngineProcess(name, *fake, tmp_path / "workload.json")

    return start


def state(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0]


def comes_true(condition) -> bool:
    return any(condition() or time.sleep(0.01) for _ in range(1000))


def test_engines_take_turns_and_the_others_stand_still(start):
    with start("a") as a, start("b") as b:
        comparison = alternate([a, b], WORKLOAD, [2, 1], repeats=3)
        for name in "ab":
            runs = comparison.runs[name]
            assert [run["others"] for run in runs] == [["T"]] * 3, "the other must be stopped"
            assert [run["calls"] for run in runs] == [["warm_up", *range(1, n + 1)] for n in (1, 2, 3)]
            assert all(run["seconds"] > 0 and run["path"] is None and run["set"] == "yes" for run in runs)
            assert state(runs[0]["pid"]) == "T"
            assert comes_true(lambda pid=runs[0]["child"]: state(pid) == "T")


def test_what_an_engine_says_of_itself_is_kept_with_the_peak_memory_of_the_process_and_its_children(start):
    with start() as engine:
        about, run = engine.about, engine.run([1, 1], seed=1)
        assert about["configured"] == "as told" and set(about["versions"]) == {"python", "pip"}
        assert about["load_seconds"] > 0 and about["warm_up_seconds"] >= 0
        assert 150e6 < engine.peak_bytes < 250e6  # 100 MB, 50 MB and two interpreters
        assert 50e6 < run["peak_bytes"] < 150e6, "the 100 MB were given back before the run"


def test_at_the_end_the_process_and_its_children_are_gone(start):
    with start() as engine:
        run = engine.run([1, 1], seed=1)
    for pid in (run["pid"], run["child"]):
        path = pathlib.Path(f"/proc/{pid}/stat")
        assert comes_true(lambda pid=pid, path=path: not path.exists() or state(pid) == "Z")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("missing", r"engine hf: .*no_such_package.*pip install torch.*--hf_python="),
        ("dies", r"engine hf: its process ended without a word.*noise of a library"),
    ],
)
def test_an_engine_that_cannot_be_loaded_says_what_to_do(start, told, message):
    with pytest.raises(BenchmarkError, match=f"(?s){message}"):
        start("hf", told)


def test_an_engine_that_fails_in_a_run_is_named(start):
    with start(told="fails") as engine:
        with pytest.raises(BenchmarkError, match=r"(?s)engine fake: RuntimeError: out of cake.*Traceback"):
            alternate([engine], WORKLOAD, [2, 1], repeats=2)


def test_an_engine_that_is_killed_while_it_waits_is_named(start):
    with start() as engine:
        os.kill(engine.run([1, 1], seed=1)["pid"], signal.SIGKILL)
        with pytest.raises(BenchmarkError, match="engine fake: its process ended without a word"):
            engine.run([1, 1], seed=2)


def test_other_responses_than_asked_for_are_an_error(start):
    with start(told="one too many") as engine:
        with pytest.raises(BenchmarkError, match=r"engine fake: workload fake: 3 responses .* found 4"):
            alternate([engine], WORKLOAD, [2, 1], repeats=1)


def test_a_missing_interpreter_is_named(fake, tmp_path):
    with pytest.raises(BenchmarkError, match=r"--hf_python=/no/python: cannot be run"):
        EngineProcess("hf", fake[0], "/no/python", tmp_path / "workload.json")


def test_the_first_engine_stays_and_meets_every_peer(fake):
    workload = dataclasses.replace(WORKLOAD, name="prefill")
    about, comparisons = compare(workload, dict.fromkeys("abc", fake), 1, {"told": ""})
    assert list(about) == ["a", "b", "c"] and all(said["peak_bytes"] > 100e6 for said in about.values())
    pairs = [(list(c.runs), c.counts) for c in comparisons]
    assert pairs == [(["a", peer], [n, n]) for peer in "bc" for n in (1, 8, 32)]
    assert len({c.runs["a"][0]["pid"] for c in comparisons}) == 1
    assert len({run["pid"] for c in comparisons for runs in c.runs.values() for run in runs}) == 3


def test_every_task_has_its_class_and_peers_need_nothing_of_this_package():
    for engine, tasks in TASKS.items():
        for task in tasks.values():
            module, _, name = task.partition(":")
            tree = ast.parse((ENGINES / module).read_text())
            assert name in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
            assert module.startswith(f"{engine}_")
    for script in ENGINES.glob("*.py"):
        imported = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
        if not script.name.startswith("gvm_jax_"):
            assert not any(str(node.module).startswith("gvm_jax.") for node in imported), script
    server = ast.parse((ENGINES / "server.py").read_text())
    imported = {alias.name for node in ast.walk(server) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in imported} <= set(sys.stdlib_module_names)
