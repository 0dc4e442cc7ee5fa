"""What may change when a run is resumed, what is refused by name, and what is said of files that are lost."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gvm_jax.train as train_module
from configs import quickstart
from gvm_jax.config import FIELDS, ConfigError, OnResume
from gvm_jax.convert import convert
from gvm_jax.models.config import ModelError
from gvm_jax.runtime.files import RecordError
from gvm_jax.runtime.metrics import read_rows
from gvm_jax.train import train
from tests.runtime.test_owner import hold  # noqa: F401 - a fixture
from tests.test_train import (  # noqa: F401 - two fixtures
    OVERRIDES,
    compiled,
    edit_json,
    finished,
    small_config,
    without_times,
)

# Another value for each field that says how a step is computed. `mesh` and `rollout.tensor`: tests/test_meshes.py;
# the kernels of `attention` want their devices.
ROUNDING = {
    "model.remat": "none",
    "model.attention": "xla",
    "rollout.attention": "xla",
    "rollout.slots": 8,
    "rollout.page_size": 16,
    "rollout.pages": 40,
    "rollout.block_steps": 3,
    "rollout.prefill_tokens": 128,
    "gradient_norms.chunk": 2,
    "optimizer.micro_batch": 16,
    "optimizer.samples_per_row": 2,
    "optimizer.logprob_chunk": 16,
}
TOO_CLOSE_TO_ZERO = 1e-6


@pytest.fixture
def stopped(finished, tmp_path):  # noqa: F811
    """A copy of the finished run as it was after its second step, in a folder of its own."""
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "checkpoints/3")
    return workdir


@pytest.fixture
def no_work(monkeypatch):
    """Fails where a run's parts are made: data, devices, grader."""

    def begin(*_):
        pytest.fail("a run that is refused has begun")

    monkeypatch.setattr(train_module, "Trainer", begin)


@pytest.mark.slow
def test_every_field_of_how_a_step_is_computed_changes_no_token(stopped, finished, tmp_path, capsys):  # noqa: F811
    of_devices = {"mesh.data", "mesh.fsdp", "mesh.tensor", "rollout.tensor"}
    assert {name for name, field in FIELDS.items() if field.on_resume is OnResume.ROUNDING} == set(
        ROUNDING
    ) | of_devices
    shutil.copytree(quickstart.MODEL, tmp_path / "model")
    data = shutil.copy(OVERRIDES["data.path"], tmp_path / "moved.jsonl")
    moved = {"model.path": str(tmp_path / "model"), "data.path": str(data)}
    train(small_config(**ROUNDING, **moved), stopped)

    for table in ("metrics", "allocation", "samples"):
        ours, undisturbed = (without_times(read_rows(folder, table)) for folder in (stopped, finished))
        assert ours[:2] == undisturbed[:2]
        for name, value in undisturbed[2].items():
            if name not in ("train/packing_efficiency", "rollout/preemptions"):
                if isinstance(np.atleast_1d(value)[0], str):
                    assert ours[2][name] == value, name
                else:
                    np.testing.assert_allclose(ours[2][name], value, rtol=2e-4, atol=TOO_CLOSE_TO_ZERO, err_msg=name)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resumes")]
    assert line.startswith("resumes   at step 2; data.path: ") and "; rollout.slots: 16 -> 8; " in line
    assert line.endswith("; so float results may differ in the last bits")
    config = json.loads((stopped / "config.json").read_text())
    assert config["rollout"]["slots"] == 8 and config["data"]["path"] == str(data)
    (change,) = [json.loads(line) for line in (stopped / "config_changes.jsonl").read_text().splitlines()]
    assert change["step"] == 3 and change["changes"]["optimizer.micro_batch"] == [8, 16]


def test_a_finished_run_takes_more_steps_and_not_fewer(finished, tmp_path, capsys):  # noqa: F811
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"^steps = 2: 3 are done in .*run; set more, or as many$"):
        train(small_config(steps=2), tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text())["steps"] == 3
    assert len(read_rows(tmp_path / "run")) == 3
    train(small_config(), tmp_path / "run")
    assert "complete: 3 steps are done; raise --config.steps" in capsys.readouterr().out
    train(small_config(steps=4), tmp_path / "run")
    out = capsys.readouterr().out
    assert "resumes   at step 3; steps: 3 -> 4\n" in out and len(read_rows(tmp_path / "run")) == 4


def change_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({name: value * np.float32(1.01) for name, value in tensors.items()}, folder / "model.safetensors")


def change_config(folder):
    edit_json(folder / "config.json", {"rms_norm_eps": 1e-3})


def change_template(folder):
    for file in folder.iterdir():
        if file.name in ("chat_template.jinja", "tokenizer_config.json"):
            file.write_text(file.read_text().replace("{% for", "{% if true %}{% endif %}{% for"))


@pytest.mark.parametrize(
    ("change", "named", "same_name"),
    [
        (change_weights, "weights", True),  # as if the folder that the run began with had been changed
        (change_config, "config.json's rms_norm_eps", False),
        (change_template, "chat template", False),
    ],
)
def test_another_model_is_refused_under_any_name(stopped, tmp_path, change, named, same_name):
    shutil.copytree(quickstart.MODEL, folder := tmp_path / "model")
    change(folder)
    if same_name:
        edit_json(stopped / "config.json", {"model": dict(small_config().model) | {"path": str(folder)}})
    before = (stopped / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=rf"model\.path = .*: not the model that .* began with: other {named}\. Name"):
        train(small_config(**{"model.path": str(folder)}), stopped)
    assert (stopped / "config.json").read_bytes() == before and not (stopped / "config_changes.jsonl").exists()


@pytest.mark.parametrize(("section", "first", "order"), [("data", 1, 1), ("data", 0, -1), ("evaluation", 1, 1)])
def test_other_rows_are_refused_under_the_same_name(stopped, tmp_path, section, first, order):
    rows = pathlib.Path(OVERRIDES["data.path"]).read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(rows[first:][::order]))
    other = small_config(**{f"{section}.path": str(tmp_path / "rows.jsonl")})
    edit_json(stopped / "config.json", {section: dict(other[section])})
    with pytest.raises(ConfigError, match=rf"{section}\.path = .*: not the data that"):
        train(other, stopped)


def test_a_moved_base_model_is_named_to_the_export(finished, tmp_path):  # noqa: F811
    shutil.copytree(finished, tmp_path / "run")
    file = tmp_path / "run/config.json"
    file.write_text(file.read_text().replace(str(quickstart.MODEL), "/gone"))
    with pytest.raises(
        ModelError, match=r"'/gone' is not a folder .*; if the run's base model has moved, give --model="
    ):
        convert(tmp_path / "run", tmp_path / "out", "float32")
    shutil.copytree(quickstart.MODEL, tmp_path / "moved")
    (tmp_path / "moved/model.safetensors").unlink()  # its weights are not the run's
    assert convert(tmp_path / "run", tmp_path / "out", "float32", base=str(tmp_path / "moved")) == 3
    convert(finished, tmp_path / "expected", "float32")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    change_config(tmp_path / "moved")
    with pytest.raises(
        ConfigError, match=r"moved': not the model that .* began with: other config\.json's rms_norm_eps"
    ):
        convert(tmp_path / "run", tmp_path / "out", "float32", base=str(tmp_path / "moved"), overwrite=True)


def test_a_lost_record_is_told_and_its_totals_go_on(stopped, finished, caplog):  # noqa: F811
    for table in ("metrics", "evaluation"):
        (stopped / f"{table}.jsonl").unlink()
    train(small_config(), stopped)
    assert "metrics.jsonl: the lines of steps 1 to 2 are missing; the totals go on from the checkpoint's" in caplog.text
    assert (
        "evaluation.jsonl: the evaluations so far are missing" in caplog.text and "allocation.jsonl" not in caplog.text
    )
    assert without_times(read_rows(stopped)) == without_times(read_rows(finished))[2:]
    caplog.clear()
    train(small_config(), stopped)
    assert "missing" not in caplog.text


def test_a_run_that_saved_nothing_begins_again_and_says_so(stopped, finished, caplog):  # noqa: F811
    for folder in (stopped / "checkpoints").iterdir():
        shutil.rmtree(folder)
    lines = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_text("".join(lines[:2]))
    train(small_config(steps=1), stopped)
    assert "an earlier run ended at step 2 before it had saved a checkpoint; this one begins again" in caplog.text
    assert without_times(read_rows(stopped)) == without_times(read_rows(finished))[:1]


def test_a_broken_line_of_the_record_is_one_clear_line(stopped):
    file = stopped / "metrics.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "nonsense", *lines[1:], ""]))
    with pytest.raises(RecordError, match=r"metrics\.jsonl, line 2: not JSON; remove or repair the line"):
        train(small_config(), stopped)


@pytest.mark.parametrize("lost", ["gone", "a file"])
def test_lost_checkpoints_are_refused_before_any_work(stopped, lost, no_work):
    shutil.rmtree(stopped / "checkpoints")
    if lost == "a file":
        (stopped / "checkpoints").touch()
    before = (stopped / "metrics.jsonl").read_bytes()
    with pytest.raises(
        ConfigError, match=r"checkpoints: .*, yet metrics\.jsonl tells of 3 steps\. Bring the checkpoints"
    ):
        train(small_config(), stopped)
    assert (stopped / "metrics.jsonl").read_bytes() == before


def test_a_second_run_is_refused_before_any_work(stopped, tmp_path, hold, no_work):  # noqa: F811
    holder = hold(stopped)
    (tmp_path / "link").symlink_to(stopped)
    for workdir in (stopped, tmp_path / "link"):
        with pytest.raises(ConfigError, match=rf"is held by process {holder.pid} on .*; wait for its end"):
            train(small_config(), workdir)


def test_a_workdir_that_is_a_file_is_one_clear_line(tmp_path, no_work):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--workdir=.*file: is a file; name a folder"):
        train(small_config(), tmp_path / "file")
