"""The numbers behind the charts, against loops that say the same in other words."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvm_jax.report import series
from gvm_jax.report.records import RunRecord
from gvm_jax.report.texts import COLUMNS, texts, thin


def record(**tables) -> RunRecord:
    return RunRecord("run", {}, **{table: [] for table in ("metrics", "evaluation", "allocation", "samples")} | tables)


def allocation(step, believed, counts, accepted):
    prompts = list(range(len(counts)))
    names = ("prompt_id", "count", "believed_accept_rate", "believed_gradient_norm", "accept_rate")
    return {"step": step} | dict(zip(names, (prompts, counts, believed, [2.0] * len(counts), accepted), strict=True))


rates = st.integers(0, 16).map(lambda sixteenths: sixteenths / 16)  # on an edge of a bin or far from it
prompts = st.lists(st.tuples(rates, st.integers(0, 20), rates), min_size=1, max_size=20)


@given(st.lists(prompts, min_size=1, max_size=5))
def test_heat_maps_are_shares_of_samples_and_of_prompts(steps):
    run = record(allocation=[allocation(i + 1, *zip(*rows, strict=True)) for i, rows in enumerate(steps)])
    budget, observed = series.budget(run), series.accept_rates(run)
    for rows, spent, seen in zip(steps, budget["cells"], observed["cells"], strict=True):
        samples, drawn = sum(count for _, count, _ in rows), [rate for _, count, rate in rows if count]
        if samples:
            for bin_, share in enumerate(spent):  # the last bin has its upper end too
                inside = [n for p, n, _ in rows if bin_ / 10 <= p and (p < (bin_ + 1) / 10 or bin_ == 9)]
                assert share * samples == pytest.approx(sum(inside))
            assert sum(spent) == pytest.approx(1)
            assert seen[0] == pytest.approx(np.mean([rate == 0 for rate in drawn]))
            assert seen[-1] == pytest.approx(np.mean([rate == 1 for rate in drawn]))
            assert sum(seen) == pytest.approx(1) and len(seen) == len(observed["bins"]) == 12
        else:
            assert sum(spent) == sum(seen) == 0


@given(st.integers(0, 300), st.integers(1, 70))
def test_blocks_are_all_rows_in_order_and_of_nearly_one_length(rows, limit):
    parts = series.blocks([{"step": i} for i in range(rows)], limit)
    assert [row["step"] for part in parts for row in part] == list(range(rows))
    lengths = [len(part) for part in parts]
    assert len(parts) == min(rows, limit) and (not parts or max(lengths) - min(lengths) <= 1)


def test_a_long_run_is_bounded_and_ends_where_it_ended():
    steps = range(1, 1201)
    metrics = [
        {"step": i, "reward/mean": i / 1200, "reward/wrong": 0.5, "total/rollouts": 8 * i, "seconds/update": 1.0}
        for i in steps
    ]
    run = record(metrics=metrics, allocation=[allocation(i, [0.5] * 50, [1] * 50, [0.0] * 50) for i in steps])
    curves = series.training(run)
    assert len(curves["values"]["reward/mean"]) == len(curves["steps"]) == series.MAX_POINTS
    assert curves["rollouts"][0] == 8 and curves["rollouts"][-1] == 9600
    assert series.phases(run)["spans"][0] == [1, 20] and len(series.budget(run)["cells"]) == series.MAX_BLOCKS
    windows = series.windows(run)
    assert [window["span"] for window in windows][-1] == [1081, 1200] and windows[0]["prompts"] == 6000
    assert all(len(window["count"]) == series.MAX_PROMPTS for window in windows)


def test_seconds_are_those_of_the_phases_and_evaluations_belong_to_the_step_before():
    metrics = [
        {"step": i, "seconds/rollout": 2.0, "seconds/rollout_idle": 1.0, "seconds/update": 3.0} for i in (1, 2, 3)
    ]
    evaluation = [{"step": i, "total/seconds/evaluation": total} for i, total in ((0, 4.0), (2, 5.0), (3, 5.5))]
    assert series.phases(record(metrics=metrics, evaluation=evaluation)) == {
        "spans": [[1, 1], [2, 2], [3, 3]],
        "parts": {"rollout": [2, 2, 2], "update": [3, 3, 3], "evaluation": [4, 1, 0.5]},
    }


def test_seconds_of_a_curve_leave_evaluation_out_and_an_old_line_has_none():
    rows = [{"step": 1, "accuracy": 1.0, "total/seconds": 7.0, "total/seconds/evaluation": 3.0}]
    assert series.evaluation(record(evaluation=[*rows, {"step": 2, "accuracy": 1.0}]))["seconds"] == [4.0, None]


def test_speeds_are_of_each_step():
    metrics = [
        {"step": i, "total/sampled_tokens": 60 * i * i, "seconds/rollout": 2.0, "seconds/update": 1.0} for i in (1, 2)
    ]
    values = series.training(record(metrics=metrics))["values"]
    assert values == {"speed/sampling": [30, 90], "speed/step": [20, 60]}


@pytest.mark.parametrize(("share", "n"), [(0.0, 10), (0.3, 40), (0.87, 256), (1.0, 5)])
def test_wilsons_interval_holds_the_shares_that_a_score_test_keeps(share, n):
    low, high = series.wilson(share, n)
    for p in np.linspace(0.001, 0.999, 999):
        z = (share - p) / np.sqrt(p * (1 - p) / n)
        assert (low < p < high) == (abs(z) < 1.96) or min(abs(p - low), abs(p - high)) < 1e-9


@pytest.mark.parametrize(
    ("rows", "section", "questions"),
    [
        ([0.25, 0.5], {"prompts": 8}, 8),
        ([0.25, 0.3], {"prompts": 8}, None),  # the data set is smaller than this limit
        ([0.25, 0.3125], {"prompts": 8, "samples": 2}, 8),
        ([0.5], {"prompts": 0}, None),
        ([0.5], {}, None),
    ],
)
def test_intervals_need_the_number_of_questions(rows, section, questions):
    lines = [{"step": i, "accuracy": accuracy} for i, accuracy in enumerate(rows)]
    run = dataclasses.replace(record(evaluation=lines), config={"evaluation": section})
    assert series.held_out_questions(run) == questions
    assert ("low" in series.evaluation(run)["values"]) == (questions is not None)
    recorded = dataclasses.replace(run, evaluation=[line | {"questions": 4} for line in lines])
    assert series.held_out_questions(recorded) == 4


def samples(step, response):
    return {"step": step} | {name: [1] for name in COLUMNS} | {"prompt": ["12"], "response": [response]}


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(0, 300))
def test_samples_are_thinned_until_they_are_short_enough_and_keep_the_last_step(lengths, limit):
    rows = [samples(i, "x" * length) for i, length in enumerate(lengths)]
    kept = thin(rows, limit)
    assert not rows or kept[-1] is rows[-1]
    assert sum(len(row["response"][0]) + 2 for row in kept) <= limit or len(kept) <= 1
    assert len({b["step"] - a["step"] for a, b in itertools.pairwise(kept)}) <= 1


def test_what_is_left_out_is_said(monkeypatch):
    monkeypatch.setattr("gvm_jax.report.texts.MAX_CHARACTERS", 30)
    kept, said = texts([record(samples=[samples(i, "x" * 8) for i in (1, 2, 3, 4, 5)])])
    assert [row["step"] for row in kept] == [1, 3, 5] and "3 steps of 5" in said[0]
