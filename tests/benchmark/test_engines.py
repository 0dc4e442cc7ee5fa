"""The real engines on the quickstart's model, and the command."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from gvm_jax.benchmark.agreement import ALLOWED, logprob_difference
from gvm_jax.benchmark.comparison import compare
from gvm_jax.benchmark.process import ENGINES, BenchmarkError
from gvm_jax.benchmark.report import describe, show
from gvm_jax.benchmark.workload import Workload, agreement, gradient_norms, grouped, logprobs, step, update_lengths

MODEL = pathlib.Path(__file__).parent.parent.parent / "configs/quickstart_model"
QUESTIONS = ["12+34+5", "7+8", "99+1+23"]
SETTINGS = {
    "model": str(MODEL),
    "dtype": "float32",
    "slots": 4,
    "micro_batch": 2,
    "rollout": {"page_size": 16},
    "norms": {},
    "update": {},
    "step": {},
}


def run(workload, name, counts, task="engine", **changes):
    """An engine's run of a workload, and what it said of itself."""
    engines = {name: (ENGINES / f"{name}_{task}.py", sys.executable)}
    about, [comparison] = compare(workload, [counts], engines, 1, {**SETTINGS, **changes})
    return comparison.runs[name][0], about[name]


@pytest.fixture(params=["gvm_jax", "hf"])
def engine(request):
    if request.param == "hf":
        pytest.importorskip("torch")
    return request.param


@pytest.mark.slow
def test_an_engine_samples_what_is_asked_for(engine, tokenizer):
    exact = grouped(tokenizer, QUESTIONS, prompts=3, samples=2, prompt_tokens=9, new_tokens=5)
    result, about = run(exact, engine, [3, 0, 2])
    assert result["lengths"] == [5] * 5  # `alternate` has checked that; here it is seen
    assert 0 < result["prefill_seconds"] < result["seconds"]
    assert about["peak_bytes"] > 1e8 and "float32" in about["configured"]


@pytest.mark.slow
def test_a_stop_token_ends_a_response_and_counts(engine, tokenizer):
    """Every token stops: each response is one token long, for the stop token counts and what pads it does not."""
    stopping = Workload("stop", [[1, 10, 2, 12], [3, 12]], [3, 2], 6, list(range(24)), 15)
    result, _ = run(stopping, engine, [3, 2])
    assert result["lengths"] == [1] * 5
    if engine == "hf":
        assert result["steps"] == 2, "each of the two batches must end with its last row"


@pytest.mark.slow
def test_methods_and_engines_agree_on_the_norms(engine, tokenizer):
    samples = gradient_norms(tokenizer, QUESTIONS, ["46;#46", "15;#15"], 11, prompts=3, prompt_tokens=9)
    expected, _ = run(samples, "gvm_jax", [1] * 3, "norms", norms={"method": "vmap", "chunk": 2})
    found, about = run(samples, engine, [1] * 3, "norms")
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-4) and "float32" in about["configured"]


@pytest.mark.slow
def test_engines_agree_on_updates_of_unequal_lengths(tokenizer):
    """Loss and gradient norm of two updates after that of the warm-up: packed, against rows padded by PyTorch."""
    pytest.importorskip("torch")
    samples = update_lengths(tokenizer, [*QUESTIONS, "5+6"], ["46;#46", "15;#15", "123", "11"], 4)
    engines = {name: (ENGINES / f"{name}_update.py", sys.executable) for name in ("gvm_jax", "hf")}
    about, [comparison] = compare(samples, [[1] * 4], engines, 2, SETTINGS)
    assert comparison.update_difference < 1e-4
    ours = comparison.runs["gvm_jax"]
    assert ours[0]["lengths"] == [len(response) for response in samples.responses]
    assert ours[1]["loss"] < ours[0]["loss"] and "packed rows" in about["gvm_jax"]["configured"]
    assert [runs[0]["packing_efficiency"] > 0.5 for runs in comparison.runs.values()] == [True, True]


@pytest.mark.slow
def test_engines_agree_on_whatever_a_step_computes_with(tokenizer, capsys):
    """Log-probabilities, norms, the allocation, losses with clipped ratios and the update, on unequal lengths."""
    pytest.importorskip("torch")
    answers = ["46;#46", "15;#15", "123", "11", "1;2;3;#3", "9", "12+12", "#7"]
    samples = agreement(tokenizer, [*QUESTIONS, "5+6"] * 2, answers, prompts=2)
    engines = {name: (ENGINES / f"{name}_agreement.py", sys.executable) for name in ("gvm_jax", "hf")}
    about, [comparison] = compare(samples, [[1] * 8], engines, 1, SETTINGS)
    json.dumps(describe(samples, about, [comparison]))
    show(samples, about, [comparison])
    table = capsys.readouterr().out
    assert "loss of grpo" in table and "tokens/s" not in table
    *others, last = comparison.agreement.values()
    assert len(others) == 10 and max(others) < ALLOWED
    assert last < 1e-3  # AdamW's first update is g/(|g| + 1e-8): where g is near 0, its rounding decides
    run = comparison.runs["gvm_jax"][0]
    assert sum(run["allocation"]) == 8 and len(set(run["allocation"])) == 2
    assert len({round(loss, 4) for loss in run["losses"].values()}) == 3


@pytest.mark.slow
def test_engines_agree_on_logprobs(tokenizer):
    pytest.importorskip("torch")
    samples = logprobs(tokenizer, [*QUESTIONS, "5+6"], ["46;#46", "15;#15", "123", "11"], 4)
    engines = {name: (ENGINES / f"{name}_logprobs.py", sys.executable) for name in ("gvm_jax", "hf")}
    _, [comparison] = compare(samples, [[1] * 4], engines, 1, SETTINGS)
    ours, theirs = (runs[0]["logprobs"] for runs in comparison.runs.values())
    assert [len(row) for row in ours] == [len(response) for response in samples.responses]
    assert logprob_difference(ours, theirs) < 1e-4 and comparison.logprob_difference < 1e-4


def given_step(tokenizer):
    """Sums that the quickstart's model mostly solves, with GSM8K's mark before the answer."""
    sums = [("3+4", 7), ("2+5+1", 8), ("9+8+7+6", 30), ("1+2+3+4+5+6+7", 28)]
    questions, answers = [text for text, _ in sums], [f"so #### {total}" for _, total in sums]
    return dataclasses.replace(
        step(tokenizer, questions, answers, [16], "", "{problem}", prompts=4, samples=4, pilot_samples=2),
        max_new_tokens=40,
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["pilot", "online"])
def test_a_whole_step_takes_its_budget_and_tells_its_phases(tokenizer, mode, capsys):
    workload = given_step(tokenizer)
    engines = {"gvm_jax": (ENGINES / "gvm_jax_step.py", sys.executable)}
    settings = {**SETTINGS, "step": {"mode": mode}, "micro_batch": 4}
    about, [comparison] = compare(workload, [workload.counts], engines, 2, settings)
    for run in comparison.runs["gvm_jax"]:
        assert len(run["lengths"]) == 16 and 0 < run["accepted"] <= 16
        counted = sum(seconds for phase, seconds in run["phases"].items() if not phase.startswith("of "))
        assert counted == pytest.approx(run["seconds"], rel=0.1)
    assert ("of update: norms, allocation" in run["phases"]) is (mode == "online")
    assert f"({mode})" in about["gvm_jax"]["configured"]
    show(workload, about, [comparison])
    assert "seconds (share) by phase" in capsys.readouterr().out


@pytest.mark.slow
def test_a_whole_step_of_pytorch_has_the_same_parts(tokenizer):
    pytest.importorskip("torch")
    workload = given_step(tokenizer)
    engines = {"hf": (ENGINES / "hf_step.py", sys.executable)}
    _, [comparison] = compare(workload, [workload.counts], engines, 1, SETTINGS)
    [run] = comparison.runs["hf"]
    assert len(run["lengths"]) == 16 and 0 < run["accepted"] <= 16
    assert list(run["phases"]) == ["rollout", "reward", "allocation", "update"]


@pytest.mark.slow
def test_the_command_measures_norms(tmp_path):
    data, out = tmp_path / "data.jsonl", tmp_path / "out.json"
    data.write_text("".join(json.dumps({"question": text, "answer": "46;#46"}) + "\n" for text in QUESTIONS))
    command = [
        sys.executable, "-m", "gvm_jax.benchmark", f"--model={MODEL}", f"--data={data}", "--workload=gradient_norms",
        "--dtype=float32", "--repeats=1", "--norms=method=lm_head", "--norms=chunk=4", f"--json={out}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=MODEL.parent.parent)
    assert done.returncode == 0, done.stderr
    assert "s/sample" in done.stdout and "method='lm_head'" in done.stdout and "prefill" not in done.stdout
    [comparison] = json.loads(out.read_text())["comparisons"]
    assert len(comparison["runs"]["gvm_jax"][0]["norms"]) == 8


@pytest.mark.slow
def test_the_command_compares_prints_and_writes(tmp_path):
    data, out = tmp_path / "data.jsonl", tmp_path / "out.json"
    data.write_text("".join(json.dumps({"question": question}) + "\n" for question in QUESTIONS))
    command = [
        sys.executable, "-m", "gvm_jax.benchmark", f"--model={MODEL}", f"--data={data}", "--workload=prefill",
        "--dtype=float32", "--repeats=2", "--slots=16", "--rollout=page_size=32",
        "--rollout=weight_dtype=compute", f"--json={out}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=MODEL.parent.parent)
    assert done.returncode == 0, done.stderr
    assert "gvm_jax: computed in float32" in done.stdout and "page_size=32" in done.stdout
    result = json.loads(out.read_text())
    assert [comparison["counts"] for comparison in result["comparisons"]] == [[n] * 8 for n in (1, 8, 32)]
    tokens = {r["stats"]["prefill_tokens"] for c in result["comparisons"] for r in c["runs"]["gvm_jax"]}
    assert len(tokens) == 1, "prompts are computed once, however many samples they have"
    assert result["machine"]["cores"] and result["engines"]["gvm_jax"]["versions"]["jax"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engines=gvm_jax,gvm_jax"], "must be some of gvm_jax, hf, vllm, tunix, each once"),
        (["--rollout=page_size"], "must be FIELD=VALUE"),
        (["--data=/no/file.jsonl"], "/no/file.jsonl"),
        (["--model=/no/folder"], "/no/folder"),
        (["--engines=tunix"], "pip install google-tunix"),
        (["--workload=gradient_norms", "--engines=gvm_jax,vllm"], "gradient_norms: vllm cannot run it"),
        (["--norms=chunk"], "--norms=chunk: must be FIELD=VALUE"),
        (["--json=/no/folder/out.json"], "--json=/no/folder/out.json: its folder does not exist"),
    ],
)
def test_bad_flags_end_with_what_to_do(tmp_path, flags, message):
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "1+2"}\n')
    command = [sys.executable, "-m", "gvm_jax.benchmark", f"--model={MODEL}", f"--data={data}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=MODEL.parent.parent)
    assert done.returncode and message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"micro_batch": 5}, r"optimizer.micro_batch = 5: must divide the rollouts of one update"),
        ({"rollout": {"pagesize": 1}}, r"rollout.pagesize = 1: unknown field; did you mean rollout.page_size"),
        ({"step": {"remat": "ful"}}, r"model.remat = 'ful': must be .*; did you mean 'full'"),
    ],
)
def test_a_step_that_cannot_be_run_is_told_as_a_config_is(tokenizer, settings, message):
    engines = {"gvm_jax": (ENGINES / "gvm_jax_step.py", sys.executable)}
    workload = given_step(tokenizer)
    with pytest.raises(BenchmarkError, match=message):
        compare(workload, [workload.counts], engines, 1, {**SETTINGS, "step": {}, "micro_batch": 4, **settings})


def test_an_unknown_rollout_field_is_named(tokenizer):
    workload = grouped(tokenizer, QUESTIONS, prompts=1, prompt_tokens=5)
    with pytest.raises(BenchmarkError, match=r"--rollout=pagesize=...: no field of rollout; allowed are .*page_size"):
        run(workload, "gvm_jax", [1], rollout={"pagesize": 1})


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        ({"metod": "gram"}, r"--norms=metod=...: no field of the norms; allowed are method, .*chunk"),
        ({"remat": False}, '--norms=remat=False: must be like remat="none"'),
    ],
)
def test_a_wrong_field_of_the_norms_is_named(tokenizer, norms, message):
    workload = gradient_norms(tokenizer, QUESTIONS, ["46"], 4, prompts=1, prompt_tokens=5)
    with pytest.raises(BenchmarkError, match=message):
        run(workload, "gvm_jax", [1], "norms", norms=norms)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"chunk": 4}, r"--update=chunk=...: no field of the update; allowed are remat, .*logprob_chunk"),
        ({"logprob_chunk": 0}, r"--update=logprob_chunk=0: must be an integer >= 1"),
    ],
)
def test_a_wrong_field_of_the_update_is_named(tokenizer, update, message):
    samples = update_lengths(tokenizer, [*QUESTIONS, "5+6"], ["46;#46", "15;#15", "123", "11"], 4)
    with pytest.raises(BenchmarkError, match=message):
        run(samples, "gvm_jax", samples.counts, "update", update=update)
