"""No step appears twice after a resume, every line is JSON, and TensorBoard has the same numbers."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from gvm_jax.runtime.files import RecordError
from gvm_jax.runtime.metrics import MetricsWriter, read_rows


def write_steps(workdir, steps, **kwargs):
    with MetricsWriter(workdir, **kwargs) as writer:
        for step in steps:
            writer.write(step, {"reward": step / 4})
            writer.write_rows("allocation", step, {"prompt": [7, 8], "count": [step, 1]})


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


def test_values_come_back(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, {"tokens": np.int64(2**40), "loss": np.float32(0.5), "skipped": np.bool_(True)})
        writer.write(2, {"loss": math.nan, "norm": math.inf})
        writer.write_rows("allocation", 2, {"count": np.array([1, 2]), "norm": [0.5, math.nan]})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line, parse_constant=refuse_constant) for line in text.splitlines()] == [
        {"step": 0, "tokens": 2**40, "loss": 0.5, "skipped": 1},
        {"step": 2, "loss": None, "norm": None},
    ]
    first, second = read_rows(tmp_path)
    assert first["tokens"] == 2**40 and math.isnan(second["loss"])
    (row,) = read_rows(tmp_path, "allocation")
    assert row["count"] == [1, 2] and math.isnan(row["norm"][1])


def test_a_line_is_on_disk_once_written(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"reward": 0.5})
    assert read_rows(tmp_path) == [{"step": 1, "reward": 0.5}]
    writer.close()


@pytest.mark.parametrize("tail", [b"", b'{"step": 6, "rew', b'{"step": 4, "reward": 1.0}'])
def test_resume_drops_later_steps_and_a_torn_line_and_keeps_the_others(tmp_path, tail):
    write_steps(tmp_path, range(1, 6))
    for name in ("metrics", "allocation"):
        with (tmp_path / f"{name}.jsonl").open("ab") as file:
            file.write(tail)
    kept = {name: (tmp_path / f"{name}.jsonl").read_bytes() for name in ("metrics", "allocation")}
    assert [line["step"] for line in read_rows(tmp_path)] == [1, 2, 3, 4, 5]

    write_steps(tmp_path, range(4, 7), resume_step=3)
    for name, before in kept.items():
        after = (tmp_path / f"{name}.jsonl").read_bytes()
        assert [line["step"] for line in read_rows(tmp_path, name)] == [1, 2, 3, 4, 5, 6]
        assert after.splitlines()[:3] == before.splitlines()[:3]


def test_a_torn_line_after_the_last_kept_step_is_dropped(tmp_path):
    write_steps(tmp_path, range(1, 4))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4')
    write_steps(tmp_path, [4], resume_step=3)
    assert [line["step"] for line in read_rows(tmp_path)] == [1, 2, 3, 4]


def test_a_run_from_its_start_drops_all_earlier_lines(tmp_path):
    write_steps(tmp_path, range(0, 4))
    write_steps(tmp_path, range(0, 2))
    assert [line["step"] for line in read_rows(tmp_path)] == [0, 1]


def test_a_step_is_refused_twice_also_across_a_resume(tmp_path):
    write_steps(tmp_path, [1, 2])
    with MetricsWriter(tmp_path, resume_step=2) as writer:
        with pytest.raises(ValueError, match=r"metrics\.jsonl: step 2 after step 2"):
            writer.write(2, {"reward": 1.0})
        with pytest.raises(ValueError, match=r"allocation\.jsonl: step 1 after step 2"):
            writer.write_rows("allocation", 1, {"count": [1]})


def test_columns_of_different_lengths_are_refused(tmp_path):
    with MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match=r"'prompt': 2, 'count': 1"):
        writer.write_rows("allocation", 1, {"prompt": [1, 2], "count": [1]})


def test_a_broken_line_is_named(tmp_path):
    write_steps(tmp_path, [1])
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(RecordError, match=r"metrics\.jsonl, line 2: not JSON; remove or repair"):
        read_rows(tmp_path)
    with pytest.raises(RecordError, match=r"metrics\.jsonl, line 2"):
        MetricsWriter(tmp_path, resume_step=3)


def test_a_workdir_without_metrics_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--workdir"):
        read_rows(tmp_path)


def test_only_the_active_process_writes(tmp_path):
    write_steps(tmp_path, [1, 2])
    before = sorted(tmp_path.rglob("*"))
    write_steps(tmp_path, [1], active=False)
    assert sorted(tmp_path.rglob("*")) == before and len(read_rows(tmp_path)) == 2


def events(path):
    """The events of a TensorBoard file: records of length, its checksum, bytes, their checksum."""
    data = path.read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_tensorboard_gets_the_scalars_and_where_to_purge(tmp_path):
    write_steps(tmp_path, [1, 2, 3])
    write_steps(tmp_path, [3], resume_step=2)
    first, second = sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.name.split("_step_")[1])
    scalars = [(event.step, value.tag, value.simple_value) for event in events(first) for value in event.summary.value]
    assert scalars == [(1, "reward", 0.25), (2, "reward", 0.5), (3, "reward", 0.75)]
    assert [event.step for event in events(second) if event.HasField("session_log")] == [3]


def test_importing_metrics_imports_no_jax():
    code = (
        "import sys, gvm_jax.runtime.metrics, gvm_jax.runtime.progress, gvm_jax.runtime.timing;"
        "sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


FULL_DISK = """
import resource, sys
from gvm_jax.runtime.metrics import MetricsWriter

with MetricsWriter(sys.argv[1]) as writer:
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    try:
        for step in range(1000):
            if sys.argv[2] == "tensorboard":
                writer.write(step, {"reward": 0.5})
            else:
                writer.write_rows("allocation", step, {"count": [1, 2]})
    except OSError as error:
        print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


@pytest.mark.parametrize(("name", "table"), [("tensorboard", "metrics"), ("allocation.jsonl", "allocation")])
def test_a_full_disk_is_named_and_what_was_written_stays(tmp_path, name, table):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"{tmp_path / name}: cannot be written; free space"), done
    assert "File too large" in done.stdout
    steps = [row["step"] for row in read_rows(tmp_path, table)]
    assert len(steps) > 20 and steps == list(range(len(steps)))
