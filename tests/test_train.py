"""The whole loop on the quickstart's model: what it records, resuming to the bit, clean stops, bad input."""

import gc
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gvm_jax.train as train_module
from configs import quickstart
from gvm_jax.config import ConfigError
from gvm_jax.convert import convert
from gvm_jax.data import load_tokenizer
from gvm_jax.evaluation.evaluate import evaluate
from gvm_jax.models.config import ModelError, Qwen2Config
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.weights import load_params
from gvm_jax.rewards import VerifierFailure
from gvm_jax.runtime.metrics import read_rows
from gvm_jax.train import train
from tests.models.test_parity import logits_of

ROOT = pathlib.Path(__file__).parent.parent
OVERRIDES = {
    "steps": 3,
    "data.path": str(ROOT / "tests/sums.jsonl"),  # 16 problems: the third step comes back to the first ones
    "prompts_per_step": 8,
    "rollouts_per_step": 32,
    "evaluation.prompts": 16,
    "evaluation.every": 2,
    "rollout.slots": 16,
    "rollout.prefill_tokens": 256,
    "optimizer.micro_batch": 8,
    "checkpoint.every": 1,
    "gradient_norms.chunk": 8,
}


ONE_STEP = {"steps": 1, "evaluation.path": ""}  # for what an evaluation does not show: half of the programs


def small_config(argument="gvm_raft", **overrides):
    config = quickstart.get_config(argument)
    config.update_from_flattened_dict({**OVERRIDES, **overrides})
    return config


def command(workdir, *flags):
    overrides = [f"--config.{name}={value}" for name, value in OVERRIDES.items()]
    config = f"--config={ROOT / 'configs/quickstart.py'}"
    return [sys.executable, "-m", "gvm_jax.train", config, f"--workdir={workdir}", *overrides, *flags]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def edit_json(file, fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def final_state(workdir):
    """Every array of the newest checkpoint, by its file's path: raw bytes tell of a single bit."""
    newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    convert(workdir, workdir / "exported", "float32", overwrite=True)
    return newest, (workdir / "exported/model.safetensors").read_bytes()


def without_times(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k and "host/" not in k} for row in rows]


@pytest.fixture(scope="module")
def compiled():
    """Number of programs that were lowered before each step of `finished`."""
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compiled, compilations):
    """A run of three steps that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("undisturbed")

    class Watched(train_module.Trainer):
        def collect(self, state):
            compiled.append(len(compilations))
            return super().collect(state)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_module, "Trainer", Watched)
        train(small_config(), workdir)
    return workdir


def test_nothing_is_compiled_after_the_first_step(finished, compiled):
    assert compiled[0] < compiled[1] == compiled[2]


def test_metrics_account_for_everything(finished):
    rows = read_rows(finished)
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["total/rollouts"] == 32 * row["step"] and row["total/updates"] == 2 * row["step"]
        assert row["total/prompts"] == 8 * row["step"]
        assert 0 < row["total/trained_tokens"] < row["total/sampled_tokens"]
        assert row["rollout/logprob_mismatch_max"] < 1e-4
        assert row["reward/timeout"] == row["reward/error"] == 0
        assert 0 < row["reward/mean"] < 1
    assert [row["step"] for row in read_rows(finished, "evaluation")] == [0, 2, 3]
    for row in read_rows(finished, "allocation"):
        assert sum(row["count"]) == 32 and min(row["count"]) >= 1 and len(set(row["prompt_id"])) == 8
    assert any(max(row["count"]) > 4 for row in read_rows(finished, "allocation")), "never left uniform"


def test_samples_are_those_of_the_step_as_the_grader_saw_them(finished):
    problems = [json.loads(line) for line in (ROOT / "tests/sums.jsonl").read_text().splitlines()]
    for row, allocation in zip(read_rows(finished, "samples"), read_rows(finished, "allocation"), strict=True):
        assert row["step"] == allocation["step"] and len(row["response"]) == 16
        assert set(row["prompt_id"]) == set(allocation["prompt_id"])
        for prompt_id, prompt, reference, response, reward, status in zip(
            *(row[name] for name in ("prompt_id", "prompt", "reference", "response", "reward", "status")), strict=True
        ):
            assert (prompt, reference) == (problems[prompt_id]["problem"], str(problems[prompt_id]["answer"]))
            boxed = response.rpartition("\\boxed{")[2].partition("}")[0]
            assert (reward == 1) == (boxed == reference) == (status == "correct")


def test_the_run_leaves_its_config_checkpoints_and_plots(finished):
    from gvm_jax import report

    report.show(finished)
    assert json.loads((finished / "config.json").read_text())["rollouts_per_step"] == 32
    assert (finished / "plots/overview.png").stat().st_size > 5000
    assert list((finished / "tensorboard").glob("events.*"))


def test_an_exported_policy_is_a_model_folder(finished, tmp_path):
    assert convert(finished, tmp_path / "model", "float32") == 3
    model = Model(Qwen2Config.from_folder(tmp_path / "model"))
    trained = load_params(model, tmp_path / "model")
    base = load_params(model, quickstart.MODEL)
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), trained, base))
    assert 0 < max(moved) < 0.02
    assert load_tokenizer(str(tmp_path / "model")).encode("1+2=") == load_tokenizer(str(quickstart.MODEL)).encode(
        "1+2="
    )


def test_an_exported_policy_ends_where_training_ended_responses(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("gvm_jax.training.fingerprints.check", lambda *_, **__: None)  # as if the run began with `base`
    shutil.copytree(quickstart.MODEL, base := tmp_path / "base")  # names <|endoftext|> alone, unlike its template
    template = "{% for m in messages %}{{ m.content }}{{ '=' if m.role == 'user' else '<|im_end|>' }}{% endfor %}"
    edit_json(base / "tokenizer_config.json", {"eos_token": "<|endoftext|>", "chat_template": template})
    for name in ("config.json", "generation_config.json"):
        edit_json(base / name, {"eos_token_id": 15})
    shutil.copytree(finished, run := tmp_path / "run")
    config, ends = json.loads((run / "config.json").read_text()), []
    for model, stop_tokens in ((quickstart.MODEL, []), (quickstart.MODEL, ["<|im_end|>"]), (base, [])):
        config["model"]["path"], config["rollout"]["stop_tokens"] = str(model), stop_tokens
        (run / "config.json").write_text(json.dumps(config))
        convert(run, tmp_path / "model", "bfloat16", overwrite=True)
        ends.append(json.loads((tmp_path / "model/generation_config.json").read_text())["eos_token_id"])
    assert ends == [[16, 15], [16], [15, 16]]


@pytest.mark.parametrize("held", [None, '{"steps": 3}', "not JSON"])
def test_an_export_overwrites_nothing_but_a_model(finished, tmp_path, held):
    out = finished if held is None else tmp_path / "out"
    if held is not None:
        out.mkdir()
        (out / "config.json").write_text(held)
    before = (out / "config.json").read_bytes()
    with pytest.raises(ModelError, match=r"holds a config.json that is no model's, perhaps a run's"):
        convert(finished, out, "bfloat16")
    assert (out / "config.json").read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"--out=.*file is a file"):
        convert(finished, tmp_path / "file", "bfloat16")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ModelError, match=r"--out=.*model is not empty; name another folder, or give --overwrite"):
        convert(finished, tmp_path / "model", "bfloat16")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds an adapter_config.json, which would be applied to the model"):
        convert(finished, tmp_path / "lora", "bfloat16")


def test_an_exported_policy_is_the_same_in_transformers(finished, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    convert(finished, folder := tmp_path / "model", "float32")
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.apply_chat_template([{"role": "user", "content": "3+4+5"}], return_dict=False)
    assert tokens == tokenizer("3+4+5=").input_ids and theirs.generation_config.eos_token_id == [16, 15]
    model = Model(Qwen2Config.from_folder(folder))
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits.numpy()
    np.testing.assert_allclose(logits_of(model, load_params(model, folder), np.array([tokens])), expected, atol=1e-4)


def test_a_damaged_checkpoint_costs_its_steps_and_no_more(finished, tmp_path, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    biggest = max((workdir / "checkpoints/3/state").rglob("*"), key=lambda path: path.stat().st_size)
    biggest.write_bytes(biggest.read_bytes()[: biggest.stat().st_size // 2])
    train(small_config(), workdir)
    assert "CHECKPOINT OF STEP 3 IS BROKEN, GOING ON FROM STEP 2" in caplog.text
    assert final_state(workdir) == final_state(finished)
    for table in ("metrics", "evaluation", "allocation", "samples"):
        assert without_times(read_rows(workdir, table)) == without_times(read_rows(finished, table))


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_finishes_to_the_same_bits(finished, tmp_path):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        command(workdir), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.strip().startswith("1/3"):
            process.send_signal(signal.SIGTERM)
            break
    lines += process.stdout.readlines()
    assert process.wait(60) == 143, "".join(lines)
    assert "the same command resumes the run" in "".join(lines)
    train(small_config(), workdir)
    assert final_state(workdir) == final_state(finished)
    assert without_times(read_rows(workdir)) == without_times(read_rows(finished))


def test_a_group_baseline_with_a_reference_model_trains(tmp_path):
    train(small_config("gvm_grpo", **ONE_STEP, **{"objective.kl_coefficient": 0.01}), tmp_path)
    (row,) = read_rows(tmp_path)
    assert np.isfinite(row["train/loss"]) and row["train/gradient_norm"] > 0


def test_rollouts_from_rounded_weights_are_corrected(tmp_path):
    train(small_config(**ONE_STEP, **{"rollout.weight_dtype": "int8"}), tmp_path)
    (row,) = read_rows(tmp_path)
    assert 1e-4 < row["rollout/logprob_mismatch"] < 0.1
    assert 0 <= row["train/truncated_weights"] < 0.5 and np.isfinite(row["train/loss"])


def test_pilot_mode_trains_on_pilots_too(tmp_path):
    pilot = {"allocation.mode": "pilot", "allocation.pilot_samples": 2}
    train(small_config(**ONE_STEP | {"steps": 2}, **pilot), tmp_path)
    rows = read_rows(tmp_path, "allocation")
    assert all(sum(row["count"]) == 16 and min(row["count"]) >= 1 for row in rows)
    assert [row["total/rollouts"] for row in read_rows(tmp_path)] == [32, 64]


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        ("reinforce_ada_seq", {"options.round_size": 2, "options.max_rounds": 3}),
        ("dapo", {"options.group_size": 4, "options.groups": 3}),
        ("pods", {"options.group_size": 2}),
        ("cures", {"prompt_pool": 3}),
        ("gvm_paper", {"mode": "pilot", "pilot_samples": 2, "decay": 0.0}),
    ],
)
def test_strategies_that_sample_in_rounds_or_choose_train(strategy, settings, tmp_path):
    settings = {f"allocation.{name}": value for name, value in ({"strategy": strategy} | settings).items()}
    settings |= {"prompts_per_step": 4, "rollouts_per_step": 16} if "allocation.prompt_pool" in settings else {}
    train(small_config("grpo" if strategy == "dapo" else "raft", **ONE_STEP | {"steps": 2}, **settings), tmp_path)
    rows, metrics = read_rows(tmp_path, "allocation"), read_rows(tmp_path)
    assert all(sum(row["count"]) <= 32 for row in rows)
    if settings.get("allocation.mode") != "pilot":
        assert metrics[-1]["total/rollouts"] == sum(sum(row["count"]) for row in rows)
    assert all(np.isfinite(row["train/loss"]) for row in metrics)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("allocation.strategy", "gmv", "allocation.strategy = 'gmv': unknown; use one of uniform, gvm"),
        ("model.path", "/nowhere", "model.path='/nowhere' is not a folder"),
        ("data.path", "/nowhere.jsonl", "data.path"),
        ("rollouts_per_step", 4, "rollouts_per_step = 4: must be >= prompts_per_step"),
        ("data.max_prompt_tokens", 1, "data.max_prompt_tokens"),
        ("rollout.max_new_tokens", 300, r"24 \+ 300: must be at most 256, the max_position_embeddings"),
        ("rollout.pages", 3, "rollout.pages = 3: cannot hold one sequence"),
    ],
)
def test_bad_input_is_named_and_leaves_the_workdir_free(field, value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(small_config(**{field: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_of_the_embedding_table_without_a_token_change_nothing(finished, tmp_path, capsys):
    """Were they sampled, 7 rows as likely as the semicolon would have most of the probability."""
    shutil.copytree(quickstart.MODEL, folder := tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][17:] = tensors["model.embed_tokens.weight"][11]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    train(small_config(steps=1, **{"model.path": str(folder)}), tmp_path / "run")
    assert without_times(read_rows(tmp_path / "run")) == without_times(read_rows(finished))[:1]
    assert read_rows(tmp_path / "run", "samples") == read_rows(finished, "samples")[:1]
    assert (
        "tokens    24 ids, 7 of them without a text and never sampled; a response ends with" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.user_template": "{problem}<|far|>"}, r"Row 0 .* '<\|far\|>' has the id 26, .* data.user_template"),
        ({"rollout.stop_tokens": ("<|far|>",)}, r"rollout.stop_tokens: .* '<\|far\|>' has the id 26, .* 24 rows"),
    ],
)
@pytest.mark.parametrize("section", ["data", "evaluation"])
def test_tokens_beyond_the_embedding_table_are_an_error(section, changes, message, tmp_path):
    shutil.copytree(quickstart.MODEL, folder := tmp_path / "model")
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    names = [f"<|extra_{i}|>" for i in range(17, 26)] + ["<|far|>"]
    more = [{**added[-1], "id": 17 + i, "content": name} for i, name in enumerate(names)]
    edit_json(folder / "tokenizer.json", {"added_tokens": [*added, *more]})
    with pytest.raises(ValueError, match=message):
        if section == "data":
            train(small_config(**{"model.path": str(folder)}, **changes), tmp_path / "run")
        else:
            config = small_config(**{"model.path": str(folder)}, **changes)
            evaluate(config, tmp_path / "run", [OVERRIDES["data.path"]])
    assert not (tmp_path / "run").exists()


def test_truncated_weights_are_refused_before_the_workdir_is_claimed(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(quickstart.MODEL, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        train(small_config(**{"model.path": str(folder)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_template_that_holds_the_time_is_told_and_resumes(tmp_path, capsys):
    shutil.copytree(quickstart.MODEL, tmp_path / "model")
    file = tmp_path / "model/tokenizer_config.json"
    file.write_text(file.read_text().replace("}}=", "}}+{{ strftime_now('%f') }}="))
    for _ in range(2):
        train(small_config(**ONE_STEP, **{"model.path": str(tmp_path / "model")}), tmp_path / "run")
    assert "the chat template holds the time" in (out := capsys.readouterr().out) and "complete: 1 steps" in out


def test_another_runs_workdir_is_refused(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"\n  optimizer\.learning_rate: 0\.0002 -> 0\.1"):
        train(small_config(**{"optimizer.learning_rate": 0.1}), tmp_path / "copy")


def test_a_transfer_within_the_step_is_refused(tmp_path, monkeypatch):
    class Careless(train_module.Trainer):
        def __init__(self, *args):
            super().__init__(*args)
            self.step.__dict__["jitted"] = self.step.jitted._replace(
                train_step=lambda state, *batch: state.step + np.ones(3)
            )

    monkeypatch.setattr(train_module, "Trainer", Careless)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(small_config(**ONE_STEP), tmp_path)


def test_a_verifier_that_fails_stops_the_run_once_it_is_saved(finished, tmp_path, monkeypatch):
    class Failing(train_module.Trainer):
        def collect(self, state):
            if int(state.step) == 1:
                raise VerifierFailure("too many time-outs")
            return super().collect(state)

    with monkeypatch.context() as patched:
        patched.setattr(train_module, "Trainer", Failing)
        with pytest.raises(VerifierFailure):
            train(small_config(**{"checkpoint.every": 50}), tmp_path)
    assert os.listdir(tmp_path / "checkpoints") == ["1"]
    train(small_config(**{"checkpoint.every": 50}), tmp_path)
    assert final_state(tmp_path) == final_state(finished)
    for table in ("metrics", "evaluation"):
        assert without_times(read_rows(tmp_path, table)) == without_times(read_rows(finished, table))


def test_a_run_whose_updates_are_not_finite_stops_and_can_be_resumed(tmp_path, monkeypatch):
    class Broken(train_module.Trainer):
        def collect(self, state):
            state, graded = super().collect(state)
            graded.rollouts.logprobs[:] = np.nan if 1 <= int(state.step) <= 3 else graded.rollouts.logprobs
            return state, graded

    monkeypatch.setattr(train_module, "Trainer", Broken)
    settings = ONE_STEP | {"steps": 6, "checkpoint.every": 50, "optimizer.max_skipped_updates": 4}
    with pytest.raises(FloatingPointError, match=r"skipped/step-3\.npz"):
        train(small_config(**settings), tmp_path)
    with pytest.raises(FloatingPointError, match="6 in a row"):  # the count is part of the state
        train(small_config(**settings), tmp_path)
    train(small_config(**settings), tmp_path)
    rows = read_rows(tmp_path)
    assert [row["train/skipped_updates"] for row in rows] == [0, 2, 2, 2, 0, 0]
    assert rows[-1]["total/skipped_updates"] == 6 and rows[-1]["total/updates"] == 6
    assert sorted(os.listdir(tmp_path / "skipped")) == ["step-3.npz", "step-4.npz"]
    assert np.isfinite(rows[-1]["train/loss"])


@pytest.mark.slow
def test_host_memory_stays_flat_over_60_steps(tmp_path, monkeypatch):
    objects = []

    class Watched(train_module.Trainer):
        def collect(self, state):
            if int(state.step) in (30, 90):  # no save is under way
                gc.collect()
                objects.append((len(jax.live_arrays()), len(gc.get_objects())))
            return super().collect(state)

    monkeypatch.setattr(train_module, "Trainer", Watched)
    tiny = {"prompts_per_step": 4, "rollouts_per_step": 8, "rollout.slots": 8, "optimizer.micro_batch": 4}
    tiny |= {"rollout.max_new_tokens": 16, "evaluation.path": "", "checkpoint.every": 20, "steps": 91}
    train(small_config("raft", **tiny), tmp_path)
    (before, after), steps = objects, 60
    assert after[0] == before[0], objects
    assert after[1] - before[1] < 3 * steps, objects  # Orbax keeps some 30 small objects of each save
    # The allocator's pools fill at first, and breathe by some 15 MB later.
    memory = np.array([row["host/resident_bytes"] for row in read_rows(tmp_path)])
    early, late = np.median(memory[30:50]), np.median(memory[-20:])
    assert late - early < 0.05 * early, memory[::10] // 2**20
