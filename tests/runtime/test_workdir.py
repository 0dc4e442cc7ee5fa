"""A workdir belongs to one run, with what may change of it; a run in an object store equals a local one.

A local stand-in for Google's store speaks its protocol to Orbax, TensorStore and gcsfs.
"""

import json
import os

import pytest

from gvm_jax.config import ConfigError, from_json, get_config
from gvm_jax.runtime.workdir import Workdir, check_workdir, record_config, workdir_path
from tests.runtime import processes

RUN = """
import json, os, sys
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import create_server

# Google's store says an object's generation with its bytes; without it TensorStore takes each for generation 0 and
# fails now and then ("Malformed StorageGeneration").
download = objects.download
def download_with_generation(request, response, storage):
    download(request, response, storage)
    if response.status < 300:
        name = request.params["bucket_name"], request.params["object_id"]
        response["x-goog-generation"] = storage.get_file_obj(*name)["generation"]
objects.download = download_with_generation

server = create_server("localhost", 0, in_memory=True, default_bucket="bucket")
server._api.daemon = True  # or the process would wait for it after an error
server.start()
address = "http://localhost:%d" % server._api._httpd.socket.getsockname()[1]
os.environ |= {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address, "GOOGLE_CLOUD_PROJECT": "none"}

import gcsfs.retry
# The stand-in answers 501 to a move, as Google's store does not: gcsfs would ask six times before it copies.
gcsfs.retry.errs -= {501, "501"}

import pathlib
from etils import epath
from configs import quickstart
from gvm_jax import report
from gvm_jax.convert import convert
from gvm_jax.runtime.metrics import read_rows
from gvm_jax.runtime.workdir import Workdir
from gvm_jax.train import train

def config(steps):
    config = quickstart.get_config()
    config.update_from_flattened_dict(json.loads(sys.argv[1]) | {"steps": steps})
    return config

out = pathlib.Path(sys.argv[2])
train(config(3), out / "local")
for steps in (2, 3):
    train(config(steps), epath.Path("gs://bucket/runs/remote"))
report.show(epath.Path("gs://bucket/runs/remote"))
remote = epath.Path("gs://bucket/runs/remote")
print("STORED", sorted(path.name for path in remote.iterdir()), flush=True)
files = Workdir(remote)
for table in ("metrics", "evaluation", "allocation", "samples"):
    rows = [[{k: v for k, v in row.items() if "seconds" not in k and "host/" not in k} for row in read_rows(f, table)]
            for f in (files.local, out / "local")]
    rows[0] = [row for row in rows[0] if (table, row["step"]) != ("evaluation", 2)]  # where the first part ended
    assert rows[0] == rows[1], table
assert convert(remote, out / "a", "float32") == convert(out / "local", out / "b", "float32") == 3
assert convert(remote, out / "c", "float32", step=2) == 2
assert (out / "a/model.safetensors").read_bytes() == (out / "b/model.safetensors").read_bytes()
print("EQUAL", flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_a_run_in_an_object_store_equals_a_local_one(tmp_path, monkeypatch):
    pytest.importorskip("gcp_storage_emulator")
    pytest.importorskip("gcsfs")
    monkeypatch.chdir(tmp_path)
    fields = processes.SMALL_RUN | {"evaluation.every": 3, "checkpoint.every": 1}
    compiler = {"XLA_FLAGS": os.environ["XLA_FLAGS"]}  # quick to compile
    done = processes.run(RUN, json.dumps(fields), tmp_path, **processes.CACHED | compiler)
    assert done.returncode == 0 and "EQUAL" in done.stdout, done.stderr[-3000:]
    (stored,) = (line for line in done.stdout.splitlines() if line.startswith("STORED"))
    for name in ("checkpoints", "config.json", "metrics.jsonl", "evaluation.jsonl", "tensorboard", "plots"):
        assert f"'{name}'" in stored
    assert not list(tmp_path.glob("gs:*"))


def test_a_local_workdir_is_its_own_folder_of_files(tmp_path):
    files = Workdir(tmp_path)
    (files.local / "metrics.jsonl").touch()
    files.upload()
    files.close()
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_paths_are_absolute_and_unknown_stores_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert os.fspath(workdir_path("runs/a")) == f"{tmp_path}/runs/a"
    with pytest.raises(ConfigError, match="ftp://x/y: must be a folder"):
        workdir_path("ftp://x/y")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"gs://x/y: .* pip install gcsfs"):
        workdir_path("gs://x/y")


def config_of(folder):
    return from_json((folder / "config.json").read_text())


def changed(**values):
    """The default config with other values; two underscores are a dot."""
    config = get_config()
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in values.items()})
    return config


def test_a_fresh_workdir_gets_the_resolved_config(tmp_path):
    check_workdir(tmp_path / "new" / "run", get_config())
    assert not (tmp_path / "new").exists()
    for _ in range(2):
        check_workdir(tmp_path, get_config())
        assert record_config(Workdir(tmp_path), get_config(), 0) == {}
    assert os.listdir(tmp_path) == ["config.json"] and config_of(tmp_path) == get_config()


def test_another_runs_workdir_is_refused_with_the_fields_that_differ(tmp_path):
    record_config(Workdir(tmp_path), get_config(), 0)
    other = changed(seed=1, steps=7, rollout__top_p=0.5, evaluation__prompts=3, evaluation__path="gsm8k")
    with pytest.raises(ConfigError, match="another --workdir") as raised:
        check_workdir(tmp_path, other)
    assert [line.strip() for line in str(raised.value).splitlines()[1:]] == [
        "evaluation.path: '' -> 'gsm8k'",
        "evaluation.prompts: 256 -> 3",
        "rollout.top_p: 1.0 -> 0.5",
        "seed: 0 -> 1",
    ]


def test_what_may_change_and_from_which_step_it_did(tmp_path):
    def resume(step, **values):
        check_workdir(tmp_path, changed(**values))
        changes = record_config(Workdir(tmp_path), changed(**values), step)
        assert config_of(tmp_path) == changed(**values)
        file = tmp_path / "config_changes.jsonl"
        return changes, [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    assert resume(0, rollout__slots=32) == ({}, [])
    longer = {"steps": 200, "checkpoint__every": 5, "evaluation__every": 5, "rewards__deadline_seconds": 9.0}
    smaller = {"rollout__slots": 8, "optimizer__micro_batch": 4, "model__path": "elsewhere", "data__exclude": ("x",)}
    with pytest.raises(ConfigError, match=r"model\.path: '' -> 'elsewhere'"):
        resume(10, **smaller)
    before = {"rollout__slots": 32, "model__path": "here"}
    (tmp_path / "config.json").unlink()
    resume(0, **before)
    first = {"step": 11, "changes": {"rollout.slots": [32, 8], "optimizer.micro_batch": [8, 4]}}
    first["changes"] |= {"model.path": ["here", "elsewhere"], "data.exclude": [[], ["x"]]}
    changes, lines = resume(10, **smaller)
    assert changes["rollout.slots"] == (32, 8) and changes["data.exclude"] == ((), ("x",)) and lines == [first]
    assert resume(10, **smaller)[1] == [first], "killed before the next checkpoint"
    assert resume(20, **smaller) == ({}, [first])
    changes, lines = resume(30, **smaller, **longer)
    assert changes["steps"] == (100, 200) and lines[0] == first and lines[1]["step"] == 31 and len(lines) == 2
    changes, lines = resume(20, **smaller)  # the checkpoint of step 30 was broken, and what was longer is so no more
    assert changes == {} and lines == [first]
    changes, lines = resume(5, **smaller, steps=300)
    assert changes["steps"] == (100, 300) and changes["rollout.slots"] == (32, 8) and len(lines) == 1
    assert resume(0, **smaller) == ({}, [])


def test_a_workdir_that_cannot_be_checked_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"s3://bucket/run: must be a folder .* or gs://"):
        check_workdir("s3://bucket/run", get_config())
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--workdir=.*file: is a file; name a folder"):
        check_workdir(tmp_path / "file", get_config())
    (tmp_path / "checkpoints/5").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"config\.json: missing"):
        check_workdir(tmp_path, get_config())
    for text in ("{", "3", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=r"config\.json: not a run's config"):
            check_workdir(tmp_path, get_config())


def test_lost_checkpoints_are_told_from_a_run_that_saved_none_yet(tmp_path):
    record_config(Workdir(tmp_path), changed(checkpoint__every=2), 0)
    longer = changed(checkpoint__every=100)  # it does not say how often the run has saved so far
    record, checkpoints = tmp_path / "metrics.jsonl", tmp_path / "checkpoints"
    record.write_text('{"step": 1}\n{"step"')
    with pytest.raises(ConfigError, match=r"checkpoints: no checkpoint is there, yet metrics\.jsonl tells of 1 steps"):
        check_workdir(tmp_path, longer)
    checkpoints.touch()
    with pytest.raises(ConfigError, match=r"checkpoints: is a file, yet metrics\.jsonl tells of 1 steps. Bring"):
        check_workdir(tmp_path, longer)
    checkpoints.unlink()
    checkpoints.mkdir()
    for steps in range(1, 5):
        record.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, steps + 1)))
        check_workdir(tmp_path, longer)
    record.write_text('{"step": 5}\n')
    with pytest.raises(ConfigError, match=r"checkpoints: no checkpoint is there, yet metrics\.jsonl tells of 5 steps"):
        check_workdir(tmp_path, longer)
    record.write_text("nonsense\n")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: its last line is no step"):
        check_workdir(tmp_path, longer)
    record.unlink()
    check_workdir(tmp_path, longer)
