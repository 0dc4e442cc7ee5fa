"""Phases add up, also where their body raises."""

import time

import pytest

from gvm_jax.runtime.timing import PhaseTimer


def test_phases_add_up_until_reset(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 12.5, 20.0, 20.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    timer = PhaseTimer()
    with timer("rollout"):
        pass
    with timer("train"):
        pass
    with pytest.raises(RuntimeError), timer("rollout"):
        raise RuntimeError
    assert timer.seconds == {"rollout": 1.25, "train": 2.5}
    timer.reset()
    assert timer.seconds == {}


def test_compilations_count_apart_and_phases_are_told(monkeypatch):
    clock, compiled, phases = iter([0.0, 5.0, 5.0, 6.0]), iter([0.0, 3.0, 3.0, 3.0]), []
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    timer = PhaseTimer(lambda: next(compiled))
    timer.on_phase = phases.append
    with timer("rollout"):
        pass
    with timer("update"):
        pass
    assert timer.seconds == {"rollout": 2.0, "compile": 3.0, "update": 1.0} and phases == ["rollout", "update"]
