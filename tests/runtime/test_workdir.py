"""A run in an object store: a local stand-in for Google's speaks its protocol to Orbax, TensorStore and gcsfs."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from gvm_jax.config import ConfigError
from gvm_jax.runtime.workdir import Workdir, workdir_path

ROOT = pathlib.Path(__file__).parent.parent.parent

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
SMALL = {
    "data.path": str(ROOT / "tests/sums.jsonl"), "prompts_per_step": 8, "rollouts_per_step": 16,
    "evaluation.prompts": 8, "evaluation.every": 3, "rollout.slots": 16, "rollout.prefill_tokens": 256,
    "rollout.max_new_tokens": 24, "optimizer.micro_batch": 8, "checkpoint.every": 1, "gradient_norms.chunk": 8,
}  # fmt: skip


@pytest.mark.slow
def test_a_run_in_an_object_store_equals_a_local_one(tmp_path):
    pytest.importorskip("gcp_storage_emulator")
    pytest.importorskip("gcsfs")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    command = [sys.executable, "-c", RUN, json.dumps(SMALL), str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
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
