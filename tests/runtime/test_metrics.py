"""No step appears twice after a resume, every line is JSON, and TensorBoard has the same numbers."""

import json
import math

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from gvm_jax.runtime.files import RecordError
from gvm_jax.runtime.metrics import MetricsWriter, read_rows
from tests.runtime import processes

TABLES = ("metrics", "allocation")


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


@pytest.mark.parametrize("tail", [b"", b'{"step": 6, "rew', b'{"step": 4, "reward": 1.0}'])
@pytest.mark.parametrize(("resume_step", "last"), [(3, 6), (5, 6), (None, 2)])
def test_resume_drops_later_steps_and_a_torn_line_and_keeps_the_others(tmp_path, tail, resume_step, last):
    write_steps(tmp_path, range(1, 6))
    for name in TABLES:
        with (tmp_path / f"{name}.jsonl").open("ab") as file:
            file.write(tail)
    before = [(tmp_path / f"{name}.jsonl").read_bytes().splitlines() for name in TABLES]
    assert [line["step"] for line in read_rows(tmp_path)] == [1, 2, 3, 4, 5]

    kept = resume_step or 0
    write_steps(tmp_path, range(kept + 1, last + 1), resume_step=resume_step)
    for name, lines in zip(TABLES, before, strict=True):
        assert [line["step"] for line in read_rows(tmp_path, name)] == list(range(1, last + 1))
        assert (tmp_path / f"{name}.jsonl").read_bytes().splitlines()[:kept] == lines[:kept]


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


def test_a_broken_line_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="--workdir"):
        read_rows(tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\nnonsense\n{"step": 3}\n')
    for read in (read_rows, lambda workdir: MetricsWriter(workdir, resume_step=3)):
        with pytest.raises(RecordError, match=r"metrics\.jsonl, line 2: not JSON; remove or repair"):
            read(tmp_path)


def test_only_the_active_process_writes(tmp_path):
    write_steps(tmp_path, [1, 2])
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    write_steps(tmp_path, [1], active=False)
    assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before


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
    code = "import sys, gvm_jax.runtime.metrics, gvm_jax.runtime.progress, gvm_jax.runtime.timing"
    assert processes.run(f"{code}; sys.exit('jax' in sys.modules)").returncode == 0


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
    done = processes.run(FULL_DISK, tmp_path, name)
    assert done.stdout.startswith(f"{tmp_path / name}: cannot be written; free space"), done
    assert "File too large" in done.stdout
    steps = [row["step"] for row in read_rows(tmp_path, table)]
    assert len(steps) > 20 and steps == list(range(len(steps)))
