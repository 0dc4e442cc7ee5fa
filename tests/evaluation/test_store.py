"""What is on disk of an evaluation survives what interrupts it."""

import pytest

from gvm_jax.config import ConfigError
from gvm_jax.evaluation.store import SampleStore

SETTINGS = {"seed": 0, "rollout": {"top_p": 1.0, "stop_tokens": ("a",)}}


def line(question, sample, status="correct"):
    return {"question": question, "sample": sample, "status": status}


def test_a_torn_line_is_dropped_and_the_rest_is_kept(tmp_path):
    with SampleStore(tmp_path, SETTINGS) as store:
        store.write(line(0, 1))
    with (tmp_path / "samples.0.jsonl").open("a") as file:
        file.write('{"question": 7, "sa')
    store = SampleStore(tmp_path, SETTINGS)
    assert set(store.load()) == {(0, 1)}
    with store:
        store.write(line(0, 0))
    assert set(store.load()) == {(0, 0), (0, 1)}


def test_the_final_file_does_not_depend_on_order_process_or_a_second_grade(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    with SampleStore(one, SETTINGS) as store:
        for question, sample in [(0, 0), (0, 1), (1, 0)]:
            store.write(line(question, sample))
    store.finish()
    with SampleStore(other, SETTINGS) as store:
        store.write(line(1, 0))
        store.write(line(0, 1, "timeout"))
        store.write(line(0, 1))
    (other / "samples.1.jsonl").write_bytes((other / "samples.0.jsonl").read_bytes())
    with (other / "samples.1.jsonl").open("a") as file:
        file.write('{"question": 0, "sample": 0, "status": "correct"}\n{"torn')
    SampleStore(other, SETTINGS).finish()
    assert (one / "samples.jsonl").read_bytes() == (other / "samples.jsonl").read_bytes()
    assert sorted(p.name for p in other.iterdir()) == ["samples.jsonl", "settings.json"]


def test_a_crash_between_the_final_file_and_the_end_of_the_parts_does_no_harm(tmp_path):
    with SampleStore(tmp_path, SETTINGS) as store:
        store.write(line(0, 0))
    part = (tmp_path / "samples.0.jsonl").read_bytes()
    store.finish()
    (tmp_path / "samples.0.jsonl").write_bytes(part)
    assert list(store.load().values()) == [line(0, 0)]
    store.finish()
    assert (tmp_path / "samples.jsonl").read_bytes() == part


def test_other_settings_are_refused_by_name(tmp_path):
    SampleStore(tmp_path, SETTINGS)
    SampleStore(tmp_path, SETTINGS)
    with pytest.raises(ConfigError, match=r"or delete the folder\. Fields:\n  rollout\.top_p: 1\.0 -> 0\.9"):
        SampleStore(tmp_path, {"seed": 0, "rollout": {"top_p": 0.9, "stop_tokens": ("a",)}})


def test_what_has_moved_is_known_by_its_content(tmp_path):
    SampleStore(tmp_path, {"questions": {"path": "a.jsonl", "hash": "1"}, "model": {"path": "old"}})
    SampleStore(tmp_path, {"questions": {"path": "b.jsonl", "hash": "1"}, "model": {"path": "new"}})
    with pytest.raises(ConfigError, match=r"Fields:\n  questions\.hash: '1' -> '2'$"):
        SampleStore(tmp_path, {"questions": {"path": "a.jsonl", "hash": "2"}, "model": {"path": "old"}})


def test_an_older_files_name_of_the_reference_is_read(tmp_path):
    (tmp_path / "samples.jsonl").write_text('{"question": 0, "sample": 0, "gold": "5", "status": "wrong"}\n')
    store = SampleStore(tmp_path, SETTINGS)
    assert store.load() == {(0, 0): {"question": 0, "sample": 0, "reference": "5", "status": "wrong"}}
