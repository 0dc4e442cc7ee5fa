"""What a run was made with is recorded, and memory where a device reports it."""

import json
import types

import jax
import jax.numpy as jnp
from etils import epath

from gvm_jax.runtime import about
from gvm_jax.runtime.compilations import compilations


def test_the_last_start_is_recorded_with_the_first_ones_date(tmp_path, monkeypatch):
    about.record_about(epath.Path(tmp_path))
    first = json.loads((tmp_path / "about.json").read_text())
    assert (first["jax"], first["devices"], first["hosts"]) == (jax.__version__, jax.device_count(), 1)
    assert first["started"] == first["date"] and first["platform"] == jax.default_backend()
    monkeypatch.setattr(about.time, "strftime", lambda _: "later")
    monkeypatch.setattr(about, "_commit", lambda: None)
    about.record_about(epath.Path(tmp_path))
    again = json.loads((tmp_path / "about.json").read_text())
    assert (again["date"], again["started"]) == ("later", first["date"]) and "commit" not in again


def test_memory_is_the_most_of_any_device_and_absent_where_none_reports_it(monkeypatch):
    def devices(*stats):
        monkeypatch.setattr(
            jax, "local_devices", lambda: [types.SimpleNamespace(memory_stats=lambda x=x: x) for x in stats]
        )

    devices({"peak_bytes_in_use": 3}, {"peak_bytes_in_use": 7}, {})
    assert about.memory_metrics() == {"device/peak_memory_bytes": 7}
    devices(None, {})
    assert about.memory_metrics() == {}


def test_compilations_are_counted_and_found_programs_are_not():
    before, double = compilations().seconds(), jax.jit(lambda x: 2 * x)
    double(jnp.arange(7))
    compiled = compilations().seconds()
    double(jnp.arange(7))
    assert before < compiled == compilations().seconds() and not compilations().compiling()
