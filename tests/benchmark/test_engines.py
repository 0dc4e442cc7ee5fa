"""The real engines on the quickstart's model, and the command."""

import dataclasses
import importlib
import json
import pathlib
import re
import subprocess
import sys

import pytest

from gvm_jax.benchmark import workloads
from gvm_jax.benchmark.agreement import ALLOWED, token_differences
from gvm_jax.benchmark.engine_comparison import compare
from gvm_jax.benchmark.engine_process import ENGINES as SCRIPTS
from gvm_jax.benchmark.engine_process import TASKS, BenchmarkError
from gvm_jax.benchmark.measure import measure, parse_fields
from gvm_jax.benchmark.tables import Result
from gvm_jax.benchmark.workloads import Workload
from gvm_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
MODEL = ROOT / "configs/quickstart_model"
SETTINGS = {"model": str(MODEL), "dtype": "float32", "slots": 4, "micro_batch": 2}


def run(workload, *names, task="rollouts", repeats=1, fields=None, **settings):
    """The comparison of engines, and what they said of themselves."""
    if "hf" in names:
        pytest.importorskip("torch")
    engines = {name: (TASKS[name][task], sys.executable) for name in names}
    settings = {**SETTINGS, "fields": fields or {}, **settings}
    about, [comparison] = compare(workload, engines, repeats, settings)
    return comparison, about


ENGINES = pytest.mark.parametrize("engine", ["gvm_jax", "hf"])


@pytest.mark.slow
@ENGINES
def test_an_engine_samples_what_is_asked_for(engine, texts):
    exact = workloads.grouped(texts, prompts=3, samples=2, prompt_tokens=9, new_tokens=5)
    exact = dataclasses.replace(exact, counts=[3, 0, 2])
    comparison, about = run(exact, engine, fields={"rollout.page_size": 16})
    [result] = comparison.runs[engine]
    assert result["lengths"] == [5] * 5  # `alternate` has checked that; here it is seen
    assert 0 < result["prefill_seconds"] < result["seconds"]
    assert about[engine]["peak_bytes"] > 1e8 and "float32" in about[engine]["configured"]
    if engine == "gvm_jax":
        assert result["samples_per_read"] == 8, "on a CPU a tile of samples reads its prompt once"


@pytest.mark.slow
@ENGINES
def test_a_stop_token_ends_a_response_and_counts(engine):
    """Every token stops: each response is one token long, for the stop token counts and what pads it does not."""
    stopping = Workload("stop", [[1, 10, 2, 12], [3, 12]], [3, 2], 6, list(range(24)), 15)
    [result] = run(stopping, engine)[0].runs[engine]
    assert result["lengths"] == [1] * 5
    if engine == "hf":
        assert result["steps"] == 2, "each of the two batches must end with its last row"


@pytest.mark.slow
@ENGINES
def test_methods_and_engines_agree_on_the_norms(engine, texts):
    samples = workloads.gradient_norms(texts, response_tokens=11, prompts=3, prompt_tokens=9)
    fields = {"gradient_norms.method": "vmap", "gradient_norms.chunk": 2}
    expected, _ = run(samples, "gvm_jax", task="norms", fields=fields)
    found, about = run(samples, engine, task="norms")
    norms = found.runs[engine][0]["norms"]
    assert norms == pytest.approx(expected.runs["gvm_jax"][0]["norms"], rel=1e-4)
    assert "float32" in about[engine]["configured"]


def test_given_responses_stand_behind_their_own_prompts(texts, monkeypatch):
    """Of the workload `agreement`, whose groups number the questions, not the rows."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    samples = workloads.agreement(dataclasses.replace(texts, questions=[*texts.questions] * 2), prompts=2)
    rollouts = importlib.import_module("gvm_jax_model").given_rollouts(dataclasses.asdict(samples))
    for row, (prompt, response) in enumerate(zip(samples.prompts, samples.responses, strict=True)):
        assert rollouts.tokens[row][: len(prompt) + len(response)].tolist() == prompt + response
        assert (rollouts.prompt_lengths[row], rollouts.response_lengths[row]) == (len(prompt), len(response))
    assert rollouts.group.tolist() == samples.groups == [0] * 4 + [1] * 4


@pytest.mark.slow
def test_an_update_of_unequal_lengths_lowers_the_loss(texts):
    samples = workloads.whole_answers(texts, 4)
    comparison, about = run(samples, "gvm_jax", task="update", repeats=2)
    first, second = comparison.runs["gvm_jax"]
    assert first["lengths"] == [len(response) for response in samples.responses] and first["packing_efficiency"] > 0.5
    assert second["loss"] < first["loss"] and "packed rows" in about["gvm_jax"]["configured"]


@pytest.mark.slow
def test_engines_agree_on_updates_of_unequal_lengths(texts):
    """Loss and gradient norm of two updates after that of the warm-up: packed, against rows padded by PyTorch."""
    comparison, _ = run(workloads.whole_answers(texts, 4), "gvm_jax", "hf", task="update", repeats=2)
    assert comparison.differences["updates differ"] < ALLOWED


@pytest.mark.slow
def test_engines_agree_on_whatever_a_step_computes_with(texts, capsys):
    """Log-probabilities, norms, the allocation, losses with clipped ratios and the update, on unequal lengths."""
    samples = workloads.agreement(dataclasses.replace(texts, questions=[*texts.questions] * 2), prompts=2)
    comparison, about = run(samples, "gvm_jax", "hf", task="agreement")
    result = Result(samples, {}, about, [comparison])
    json.dumps(result.describe())
    result.show()
    table = capsys.readouterr().out
    assert "loss of grpo" in table and "tokens/s" not in table
    *others, last = comparison.differences.values()
    assert len(others) == 10 and max(others) < ALLOWED
    assert last < 1e-3  # AdamW's first update is g/(|g| + 1e-8): where g is near 0, its rounding decides
    found = comparison.runs["gvm_jax"][0]
    assert sum(found["allocation"]) == 8 and len(set(found["allocation"])) == 2
    assert len({round(loss, 4) for loss in found["losses"].values()}) == 3


@pytest.mark.slow
def test_engines_agree_on_logprobs(texts):
    samples = workloads.whole_answers(texts, 4, "logprobs")
    comparison, _ = run(samples, "gvm_jax", "hf", task="logprobs")
    ours, theirs = (runs[0]["logprobs"] for runs in comparison.runs.values())
    assert [len(row) for row in ours] == [len(response) for response in samples.responses]
    assert token_differences(ours, theirs).max() < ALLOWED


@pytest.fixture
def sums(texts):
    """A step on sums that the quickstart's model mostly solves, with GSM8K's mark before the answer."""
    solved = {"3+4": 7, "2+5+1": 8, "9+8+7+6": 30, "1+2+3+4+5+6+7": 28}
    texts = dataclasses.replace(texts, questions=[*solved], answers=[f"so #### {total}" for total in solved.values()])
    sizes = {"prompts": 4, "samples": 4, "pilot_samples": 2, "new_tokens": 40}
    return workloads.step(texts, **sizes, system_prompt="", user_template="{problem}")


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "mode"), [("gvm_jax", "pilot"), ("gvm_jax", "online"), ("hf", "pilot")])
def test_a_whole_step_takes_its_budget_and_tells_its_phases(sums, engine, mode, capsys):
    comparison, about = run(sums, engine, task="step", fields={"allocation.mode": mode}, micro_batch=4, repeats=2)
    for step in comparison.runs[engine]:
        assert len(step["lengths"]) == 16 and 0 < step["accepted"] <= 16
        assert {"rollout", "reward", "update"} <= set(step["phases"])
        counted = sum(seconds for phase, seconds in step["phases"].items() if not phase.startswith("of "))
        assert counted == pytest.approx(step["seconds"], rel=0.1)
    assert ("of update: norms, allocation" in step["phases"]) is (mode == "online")
    assert engine == "hf" or f"({mode})" in about[engine]["configured"]
    Result(sums, {}, about, [comparison]).show()
    assert "seconds (share) by phase" in capsys.readouterr().out


def command(data, *arguments):
    flags = [f"--model={MODEL}", f"--data={data}", "--dtype=float32", *arguments]
    done = subprocess.run([sys.executable, "-m", "gvm_jax.benchmark", *flags], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_command_compares_prints_and_writes(tmp_path, texts):
    data, out = tmp_path / "data.jsonl", tmp_path / "out.json"
    data.write_text("".join(json.dumps({"question": question}) + "\n" for question in texts.questions))
    printed = command(
        data, "--workload=prefill", "--repeats=2", "--slots=16", "--rollout=page_size=32",
        "--rollout=weight_dtype=compute", f"--json={out}",
    )  # fmt: skip
    assert "gvm_jax: computed in float32" in printed and "page_size=32" in printed
    result = json.loads(out.read_text())
    assert [comparison["counts"] for comparison in result["comparisons"]] == [[n] * 8 for n in (1, 8, 32)]
    tokens = {r["stats"]["prefill_tokens"] for c in result["comparisons"] for r in c["runs"]["gvm_jax"]}
    assert len(tokens) == 1, "prompts are computed once, however many samples they have"
    assert result["machine"]["cores"] and result["engines"]["gvm_jax"]["versions"]["jax"]


@pytest.mark.slow
def test_the_command_measures_norms(tmp_path, texts):
    data, out = tmp_path / "data.jsonl", tmp_path / "out.json"
    data.write_text("".join(json.dumps({"question": q, "answer": "46;#46"}) + "\n" for q in texts.questions))
    fields = ["--norms=method=vmap", "--norms=chunk=4", "--norms=remat=full"]
    printed = command(data, "--workload=gradient_norms", "--repeats=1", *fields, f"--json={out}")
    assert "s/sample" in printed and "method='vmap'" in printed and "remat=full" in printed
    assert "prefill" not in printed
    [comparison] = json.loads(out.read_text())["comparisons"]
    assert len(comparison["runs"]["gvm_jax"][0]["norms"]) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engines": ["gvm_jax", "gvm_jax"]}, "must be some of gvm_jax, hf, vllm, tunix, each once"),
        ({"data": "/no/file.jsonl"}, "/no/file.jsonl"),
        ({"model": "/no/folder"}, "/no/folder"),
        ({"engines": ["tunix"]}, "pip install google-tunix"),
        ({"workload": "gradient_norms", "engines": ["gvm_jax", "vllm"]}, "gradient_norms: vllm cannot run it"),
    ],
)
def test_arguments_that_cannot_be_end_with_what_to_do(tmp_path, arguments, message):
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "1+2"}\n')
    with pytest.raises((InputError, BenchmarkError), match=message):
        measure(**{"model": str(MODEL), "data": str(data), **arguments})


def test_fields_are_those_of_a_section_or_of_the_model():
    assert parse_fields("norms", ["chunk=4", "remat=full"]) == {
        "gradient_norms.chunk": 4, "model.remat": "full",
    }  # fmt: skip
    assert parse_fields("rollout", ["attention=xla"]) == {"rollout.attention": "xla"}
    assert parse_fields("step", ["mode=online"]) == {"allocation.mode": "online"}
    with pytest.raises(InputError, match="--norms=chunk: must be FIELD=VALUE"):
        parse_fields("norms", ["chunk"])


def test_fields_that_cannot_be_are_refused_together_as_in_a_run(texts):
    broken = {
        "optimizer.micro_batch = 5": "must divide the rollouts of one update",
        "rollout.pagesize = 1": "unknown field; did you mean rollout.page_size",
        "model.remat = 'ful'": "did you mean 'full'",
        "model.attention = False": "must be ",
        "optimizer.logprob_chunk = 0": "must be an integer >= 1",
    }
    fields = {"optimizer.micro_batch": 5, "rollout.pagesize": 1, "model.remat": "ful", "model.attention": False}
    with pytest.raises(BenchmarkError) as refused:
        run(
            workloads.whole_answers(texts, 4), "gvm_jax", task="update", fields={**fields, "optimizer.logprob_chunk": 0}
        )
    for field, problem in broken.items():
        assert re.search(f"{re.escape(field)}: .*{problem}", str(refused.value)), field
