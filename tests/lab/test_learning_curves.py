"""Intervals, differences and costs to a target, against numbers worked out by hand or by NumPy; what a report says."""

import json
import math

import numpy as np
import pytest

from configs import quickstart
from gvm_jax.lab import training_comparison_report
from gvm_jax.lab.learning_curves import (
    COSTS,
    Curve,
    Estimate,
    Ratio,
    default_target,
    read_curve,
    steps_done,
    summarize,
)
from gvm_jax.lab.variants import Variant, make_variants

T_975 = {1: 12.7062047, 2: 4.30265273, 4: 2.77644511, 9: 2.26215716}  # from a printed table, by degrees of freedom


def curve(accuracy, rollouts_per_step=100, every=1, seconds=2.0):
    steps = np.arange(len(accuracy)) * every
    per_step = {"rollouts": rollouts_per_step, "tokens": 10 * rollouts_per_step, "updates": 2, "seconds": seconds}
    costs = {name: steps * float(cost) for name, cost in per_step.items()}
    return Curve(steps, np.array(accuracy, float), costs)


def write_run(folder, accuracy, every=2, rollouts=100, seconds=(9.0, 2.0, 2.0, 3.0), saved=True, torn=False):
    """The record of a run, evaluated every `every` steps and after the last one, each evaluation taking 0.5 s."""
    folder.mkdir(parents=True, exist_ok=True)

    def line(step, evaluations):
        return {
            "step": step,
            "total/rollouts": rollouts * step,
            "total/sampled_tokens": 7 * rollouts * step,
            "total/updates": 3 * step,
            "total/seconds": sum(seconds[:step]) + 0.5 * evaluations,
            "total/seconds/evaluation": 0.5 * evaluations,
        }

    steps = len(seconds)
    evaluated = sorted({*range(0, steps, every), steps})
    metrics = [line(step, sum(at < step for at in evaluated)) for step in range(1, steps + 1)]
    evaluations = [
        {**line(step, number), "accuracy": value}
        for number, (step, value) in enumerate(zip(evaluated, accuracy, strict=True), start=1)
    ]
    for table, rows in (("metrics", metrics), ("evaluation", evaluations)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{table}.jsonl").write_text(text + torn * '{"step": 5, "to')
    if saved:
        (folder / "checkpoints" / str(steps)).mkdir(parents=True)
    return folder


def test_a_curve_is_read_with_its_costs(tmp_path):
    run = write_run(tmp_path / "run", [0.4, 0.5, 0.7], torn=True)
    for free_pilots, rollouts in ((0, [0, 200, 400]), (30, [0, 140, 280])):
        read = read_curve(run, free_pilots)
        np.testing.assert_array_equal(read.steps, [0, 2, 4])
        np.testing.assert_array_equal(read.accuracy, [0.4, 0.5, 0.7])
        # The first step counts as the median of the later ones, 2 s; evaluations do not count.
        expected = {"rollouts": rollouts, "tokens": [0, 1400, 2800], "updates": [0, 6, 12], "seconds": [0, 4, 9]}
        assert {name: cost.tolist() for name, cost in read.costs.items()} == expected


def test_a_run_is_done_once_it_is_trained_evaluated_and_saved(tmp_path):
    assert steps_done(tmp_path / "none") == 0
    assert steps_done(write_run(tmp_path / "done", [0.4, 0.5, 0.7])) == 4
    being_saved = write_run(tmp_path / "being_saved", [0.4, 0.5, 0.7], saved=False)
    assert steps_done(being_saved) == 0
    (being_saved / "checkpoints" / "4.orbax-checkpoint-tmp-0").mkdir(parents=True)
    assert steps_done(being_saved) == 0
    evaluation = write_run(tmp_path / "not_evaluated", [0.4, 0.5, 0.7]) / "evaluation.jsonl"
    for lines in (evaluation.read_text().splitlines(keepends=True)[:-1], []):
        evaluation.write_text("".join(lines))
        assert steps_done(tmp_path / "not_evaluated") == 0


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10])
def test_an_interval_is_students(n):
    values = np.random.default_rng(n).normal(0.7, 0.05, n)
    found = Estimate.of(values)
    assert found.by_seed == list(values)
    if n == 1:
        assert (found.mean, found.low, found.high) == (values[0], None, None)
    else:
        spread = math.sqrt(sum((v - values.sum() / n) ** 2 for v in values) / (n - 1))
        half = T_975[n - 1] * spread / math.sqrt(n)
        np.testing.assert_allclose([found.mean, found.low, found.high], values.mean() + half * np.array([0, -1, 1]))


def test_mean_accuracy_is_the_area_by_the_width():
    # Trapezoids over unequal widths: (0.3·100 + 0.6·300)/400.
    uneven = Curve(
        np.array([0, 1, 4]), np.array([0.2, 0.4, 0.8]), {name: np.array([0.0, 100.0, 400.0]) for name in COSTS}
    )
    assert uneven.mean == pytest.approx((0.3 * 100 + 0.6 * 300) / 400)


@pytest.mark.parametrize(
    ("target", "cost"),
    [(0.4, 0.0), (0.5, 50.0), (0.6, 100.0), (0.7, 300.0 - 100 * (0.8 - 0.7) / 0.4), (0.8, 300.0), (0.81, None)],
)
def test_the_cost_to_a_target_is_at_the_first_crossing(target, cost):
    falls_back = curve([0.4, 0.6, 0.4, 0.8, 0.7])
    found = falls_back.cost_to_reach(target, "rollouts")
    assert found is None if cost is None else found == pytest.approx(cost)


def test_a_ratio_is_the_geometric_mean_of_the_pairs():
    # The target 0.5 is met at 100/slope rollouts.
    ours = [curve([0.0, slope]) for slope in (0.8, 0.9, 1.0)]
    theirs = [curve([0.0, slope]) for slope in (0.6, 0.5, 0.7)]
    found = Ratio.of(ours, theirs, 0.5, "rollouts")
    logs = np.log([0.6 / 0.8, 0.5 / 0.9, 0.7 / 1.0])
    half = T_975[2] * np.std(logs, ddof=1) / math.sqrt(3)
    np.testing.assert_allclose([found.mean, found.low, found.high], np.exp(logs.mean() + half * np.array([0, -1, 1])))
    assert found.sign == ""


def test_runs_that_do_not_reach_the_target_bound_the_ratio():
    fast, slow, never = curve([0.0, 1.0]), curve([0.0, 0.5]), curve([0.0, 0.4])  # 0.5 costs 50, 100, more than 100
    lower = Ratio.of([fast, never], [fast, fast], 0.5, "rollouts")
    assert lower.sign == "≥" and lower.low is lower.high is None
    assert lower.mean == pytest.approx(math.sqrt(1.0 * 2.0))
    upper = Ratio.of([fast, fast], [slow, never], 0.5, "rollouts")
    assert upper.sign == "≤" and upper.mean == pytest.approx(math.sqrt(0.5 * 0.5))
    assert Ratio.of([never, fast], [fast, never], 0.5, "rollouts") is None
    assert Ratio.of([curve([0.6, 0.7])], [fast], 0.5, "rollouts") is None  # reached before training: no cost


def test_the_default_target_is_nine_tenths_of_the_mean_gain():
    assert default_target([curve([0.4, 0.9, 0.8]), curve([0.2, 0.5, 0.6])]) == pytest.approx(0.3 + 0.9 * 0.4)
    assert default_target([curve([0.4, 0.9, 0.4])]) is None


def test_differences_are_taken_seed_by_seed():
    """A spread that both sides share cancels."""
    rng = np.random.default_rng(3)
    of_seed, gains = rng.normal(0.5, 0.2, 5), rng.normal(0.03, 0.001, 5)
    curves = {
        "base": [curve([0.1, a]) for a in of_seed],
        "ours": [curve([0.1, a + gain]) for a, gain in zip(of_seed, gains, strict=True)],
    }
    base, ours = summarize(curves, {"base": None, "ours": "base"}, target=None)
    half = T_975[4] * np.std(gains, ddof=1) / math.sqrt(5)
    assert ours.final_difference.mean == pytest.approx(gains.mean())
    assert ours.final_difference.high - ours.final_difference.mean == pytest.approx(half)
    assert ours.mean_difference.mean == pytest.approx(gains.mean() / 2)
    assert ours.final.high - ours.final.low > 50 * (ours.final_difference.high - ours.final_difference.low)
    assert base.final_difference is base.mean_difference is None and base.ratio_to_target == {}


def write_report(tmp_path, curves, target=None, variants=None):
    variants = variants or [Variant(label, None if label == "uniform" else "uniform", {}) for label in curves]
    seeds = range(len(next(iter(curves.values()))))
    text = training_comparison_report.write(tmp_path, "a comparison", variants, curves, list(seeds), target)
    return text, (tmp_path / "comparison.md").read_text(), json.loads((tmp_path / "comparison.json").read_text())


def cells(text, label):
    (accuracy, cost) = [line for line in text.splitlines() if line.startswith(f"| {label} ")]
    return [[cell.strip() for cell in line.split("|")[2:-1]] for line in (accuracy, cost)]


def test_a_report_says_what_was_measured(tmp_path):
    curves = {
        "uniform": [curve([0.40, 0.60, 0.80]), curve([0.42, 0.62, 0.84])],
        "gvm": [curve([0.40, 0.80, 0.85]), curve([0.42, 0.82, 0.87])],
    }
    text, markdown, result = write_report(tmp_path, curves, target=0.7)
    accuracy, cost = cells(text, "gvm")
    # ± of a mean of two: 12.7·|a − b|/2.
    assert accuracy[:2] == ["0.860 ± 0.127", "+0.040 ± 0.127"] and accuracy[4:] == ["200", "2,000", "4", "4"]
    needed = [[150, 100 + 100 * 0.08 / 0.22], [75, 70]]
    ratios = np.array(needed[1]) / needed[0]
    assert cost[:2] == ["2 of 2", "72"] and cost[2].startswith(f"{np.sqrt(ratios.prod()):.2f} [")
    assert text in markdown and "Seeds: 0, 1." in markdown
    variants = {variant["label"]: variant for variant in result["variants"]}
    np.testing.assert_allclose(variants["uniform"]["cost_to_target"]["rollouts"], needed[0])
    assert variants["gvm"]["final"]["by_seed"] == [0.85, 0.87] and result["target"] == 0.7


def test_what_is_not_reached_is_said(tmp_path):
    curves = {
        "uniform": [curve([0.4, 0.8]), curve([0.4, 0.8])],
        "worse": [curve([0.4, 0.5]), curve([0.4, 0.9])],
        "bad": [curve([0.4, 0.5]), curve([0.4, 0.3])],
    }
    text, _, result = write_report(tmp_path, curves)
    assert "accuracy of 0.760 (where uniform has made 90 % of its gain)" in text
    _, cost = cells(text, "worse")
    assert cost[:2] == ["1 of 2", "not by all"] and cost[2].startswith("≥ ")
    assert cells(text, "bad")[1][:3] == ["0 of 2", "never", "≥ 1.11"]  # 100 rollouts for 90
    assert result["variants"][1]["cost_to_target"]["rollouts"] == [None, pytest.approx(72)]


def test_a_baseline_that_gains_nothing_gives_no_target(tmp_path):
    text, _, result = write_report(tmp_path, {"uniform": [curve([0.4, 0.4])], "gvm": [curve([0.4, 0.5])]})
    assert "uniform did not gain held-out accuracy" in text and result["target"] is None
    assert " +0.100 |" in text and "±" not in text  # one seed


def test_of_several_baselines_none_is_named_in_a_title(tmp_path):
    config = quickstart.get_config()
    swept = make_variants(config, ["uniform", "gvm", "cures"], sweep="rollouts_per_step:256,512,1024,2048")
    curves = {variant.label: [curve([0.4, 0.6 + i / 100])] for i, variant in enumerate(swept)}
    text, _, _ = write_report(tmp_path, curves, variants=swept)
    assert "− baseline" in text and len(cells(text, "cures:rollouts_per_step=2048")[0]) == 8
