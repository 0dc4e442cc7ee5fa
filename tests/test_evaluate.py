"""The evaluation command on the quickstart's model: what training's own evaluation says, to the bit after a kill."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from gvm_jax.config import ConfigError
from gvm_jax.evaluation import draw
from gvm_jax.evaluation.evaluate import data_set_names, evaluate
from gvm_jax.runtime.checkpoint import Checkpointer
from gvm_jax.runtime.checkpoint_files import best_step
from gvm_jax.runtime.workdir import Workdir, record_config
from gvm_jax.training.trainer import Trainer
from tests.test_train import OVERRIDES, ROOT, environment, small_config

SUMS = OVERRIDES["data.path"]
LONG = max(range(16), key=lambda i: len(pathlib.Path(SUMS).read_text().splitlines()[i]))  # longer than the limit
SAMPLES = {"evaluation.samples": 4, "evaluation.path": SUMS}

# The command, which tears a line and kills itself after 20 samples.
DYING = """
import os, signal, sys
from gvm_jax import command, evaluate
from gvm_jax.evaluation.store import SampleStore

left, write = 20, SampleStore.write

def write_or_die(store, record):
    global left
    if left == 0:
        os.write(store._file.fileno(), b'{"question": 3, "sam')
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    write(store, record)

SampleStore.write = write_or_die
command.run(evaluate.main)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of a run with checkpoints of steps 2 and 3, what its evaluation says of step 3)."""
    folder = tmp_path_factory.mktemp("run")
    config = small_config(**SAMPLES)
    record_config(Workdir(folder), config, 0)
    with Trainer(config) as run:
        state = run.initial_state()
        scores = run.evaluate(state)
        checkpointer = Checkpointer(folder, every=1, keep=2)
        for step in (2, 3):
            checkpointer.save(step, state, {})
        checkpointer.close()
    return folder, scores


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory):
    """(workdir of an evaluation that nothing disturbed, its summaries)."""
    workdir = tmp_path_factory.mktemp("evaluation")
    return workdir, evaluate(small_config(**SAMPLES), workdir, [SUMS], str(trained[0]))


def test_a_checkpoint_scores_what_training_said_of_it(trained, finished):
    accuracy, workdir, summaries = trained[1]["accuracy"], *finished
    scores = {name: score["mean"] for name, score in summaries["sums"]["scores"].items()}
    assert scores["avg@4"] == scores["pass@1"] == pytest.approx(accuracy) and 0 < accuracy < 1
    assert trained[1].pop("questions") == summaries["sums"]["questions"]
    assert trained[1] == {"accuracy": accuracy, **{name: scores[name] for name in ("pass@2", "pass@4", "maj@4")}}
    assert json.loads((workdir / "metrics.json").read_text()) == summaries


def test_every_sample_is_kept(finished):
    lines = [json.loads(line) for line in (finished[0] / "sums/samples.jsonl").read_text().splitlines()]
    questions = [question for question in range(16) if question != LONG]
    assert [(line["question"], line["sample"]) for line in lines] == [(q, s) for q in questions for s in range(4)]
    problems = [json.loads(line) for line in pathlib.Path(SUMS).read_text().splitlines()]
    for line in lines:
        assert line["prompt"] == problems[line["question"]]["problem"] + "="
        assert line["reference"] == str(problems[line["question"]]["answer"])
        assert (line["status"] == "correct") == (line["answer"] == line["reference"])
        assert line["response"].endswith(rf"\boxed{{{line['answer']}}}") or line["answer"] is None
        assert line["stopped"] == (len(line["tokens"]) < 50 or line["tokens"][-1] in (15, 16))


def test_after_a_kill_it_goes_on_to_the_same_bytes(trained, finished, tmp_path, monkeypatch):
    flags = {**OVERRIDES, **SAMPLES}
    overrides = [f"--config.{name}={value}" for name, value in flags.items()]
    config = [f"--config={ROOT / 'configs/quickstart.py'}", f"--workdir={tmp_path}", f"--checkpoint={trained[0]}"]
    dead = subprocess.run([sys.executable, "-c", DYING, *config, *overrides], env=environment(), cwd=ROOT)
    assert dead.returncode == -signal.SIGKILL
    part = (tmp_path / "sums/samples.0.jsonl").read_bytes()
    assert part.count(b"\n") == 20 and part.endswith(b'"sam')

    drawn = []
    make_record = draw.make_record
    monkeypatch.setattr(draw, "make_record", lambda *args: drawn.append(1) or make_record(*args))
    monkeypatch.setattr(draw, "ROUND", 1)  # 16 samples at once: several rounds
    summaries = evaluate(small_config(**SAMPLES), tmp_path, [SUMS], str(trained[0]))
    assert len(drawn) == 60 - 20 and summaries == finished[1]
    for file in ("sums/samples.jsonl", "sums/settings.json", "metrics.json"):
        assert (tmp_path / file).read_bytes() == (finished[0] / file).read_bytes()

    evaluate(small_config(**SAMPLES, **{"rollout.block_steps": 4}), tmp_path, [SUMS], str(trained[0]))
    assert len(drawn) == 60 - 20, "a complete evaluation draws nothing"


def test_changed_settings_are_refused_by_name(trained, finished):
    changed = small_config(**SAMPLES, **{"evaluation.temperature": 0.5, "seed": 1})
    with pytest.raises(ConfigError, match=r"Fields:\n  evaluation\.temperature: 1\.0 -> 0\.5\n  seed: 0 -> 1$"):
        evaluate(changed, finished[0], [SUMS], str(trained[0]))
    with pytest.raises(ConfigError, match=r"Fields:\n  questions\.hash: .*\n  questions\.number: 15 -> 3$"):
        evaluate(small_config(**SAMPLES, **{"evaluation.prompts": 3}), finished[0], [SUMS], str(trained[0]))
    with pytest.raises(ConfigError, match=r"Fields:\n  weights\.step: 3 -> 2$"):
        evaluate(small_config(**SAMPLES), finished[0], [SUMS], str(trained[0]), step="2")


def test_the_best_step_is_the_newest_of_the_best_that_are_kept(trained):
    file = trained[0] / "evaluation.jsonl"
    with pytest.raises(FileNotFoundError, match="known held-out accuracy"):
        best_step(trained[0])
    rows = [(1, 0.9), (2, 0.5), (3, 0.4)]
    lines = [json.dumps({"step": step, "accuracy": accuracy}) + "\n" for step, accuracy in rows]
    file.write_text("".join(lines) + '{"step": 3, "acc')
    assert best_step(trained[0]) == 2
    file.write_text(file.read_text().replace("0.4", "0.5"))
    assert best_step(trained[0]) == 3
    os.remove(file)


def test_data_sets_are_called_by_their_last_name():
    names = data_set_names(["/data/math500.jsonl", "openai/gsm8k", "builtin:arithmetic", "MATH-500", "a/b.v2/"])
    assert names == ["math500", "gsm8k", "builtin-arithmetic", "MATH-500", "b.v2"]
    with pytest.raises(ConfigError, match="two are called x"):
        data_set_names(["a/x.json", "b/x.csv"])
    with pytest.raises(ConfigError, match="no data set is named"):
        data_set_names([""])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoint": "nowhere"}, "--checkpoint=nowhere: is not the folder of a run"),
        ({"step": "last"}, "--step=last: must be a number, newest or best"),
    ],
)
def test_bad_input_leaves_no_trace(trained, tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(small_config(), tmp_path / "out", [SUMS], **{"checkpoint": str(trained[0]), **arguments})
    assert not (tmp_path / "out").exists()
