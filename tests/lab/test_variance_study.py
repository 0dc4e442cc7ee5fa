"""The study as a whole, on populations made by hand."""

import json

import numpy as np
import pytest

from gvm_jax.config import ConfigError
from gvm_jax.lab import variance_study_report
from gvm_jax.lab.variance_study import simulate_study

ENTRIES = ["uniform", "gvm@true_statistics", "gvm", "gvm:allocation.mode=pilot", "dapo"]


@pytest.fixture(scope="module")
def studied(lab_config, make_pool):
    config = lab_config(16, 128, objective__algorithm="reinforce", objective__weighting="reward")
    config.allocation.pilot_samples = 2
    pool = make_pool(np.linspace(0.05, 0.95, 16), spread=np.geomspace(6, 0.3, 16), dimensions=20)
    lines = []
    return pool, simulate_study(config, pool, ENTRIES, 128, 2, lines.append), lines


def test_no_strategy_beats_the_oracle(studied):
    _, study, _ = studied
    for row in study.results:
        assert row.gap.high > 1, row.label
    assert study.results[0].gap.low > 1
    np.testing.assert_allclose(study.oracle.error, study.oracle_error, rtol=0.15)
    np.testing.assert_allclose(study.results[0].measured.error, study.uniform_error, rtol=0.15)


def test_equal_counts_gain_nothing_on_themselves(studied):
    row = studied[1].results[0]
    assert row.label == "uniform" and row.gain == (1.0, 1.0, 1.0) and row.budget == 128
    np.testing.assert_array_equal(row.measured.counts, 8)


def test_all_spend_the_same_tokens_but_those_that_stop_before(studied):
    _, study, lines = studied
    spent = {row.label: row.measured.tokens.mean() / study.tokens for row in study.results}
    assert all(abs(share - 1) < 0.01 for label, share in spent.items() if label != "dapo"), spent
    assert spent["dapo"] < 0.95
    assert len(lines) == len(ENTRIES)


def test_ratios_are_to_equal_counts_and_to_the_oracle(studied):
    _, study, _ = studied
    for row in study.results[:-1]:
        np.testing.assert_allclose(row.gain.value, study.results[0].measured.error / row.measured.error)
        np.testing.assert_allclose(row.gap.value, row.measured.error / study.oracle.error)


def test_strategies_that_stop_before_are_compared_at_what_they_spend(studied):
    """Equal counts at the whole budget err less than at what DAPO spent, so they would make it look worse."""
    _, study, _ = studied
    dapo = next(row for row in study.results if row.label == "dapo")
    at_full_budget = study.results[0].measured.error / dapo.measured.error
    assert dapo.gain.value > at_full_budget


def test_the_report_holds_every_row(studied, tmp_path):
    pool, study, _ = studied
    text = variance_study_report.write(tmp_path, "by hand", pool, study)
    read = json.loads((tmp_path / "variance.json").read_text())
    assert [row["label"] for row in read["results"]] == ENTRIES
    for row in read["results"]:
        assert row["gain"][1] <= row["gain"][0] <= row["gain"][2] and len(row["measured"]["counts"]) == 16
        measured = row["measured"]
        np.testing.assert_allclose(measured["error"], measured["variance"] + measured["squared_bias"], rtol=1e-3)
    assert (tmp_path / "plots" / "variance.png").stat().st_size > 10_000
    assert (tmp_path / "variance.txt").read_text() == text + "\n"
    lines = variance_study_report.table(study).splitlines()
    errors = [float(line.split("|")[6]) for line in lines[2:]]
    assert len(lines) == 3 + len(ENTRIES) and errors[0] == min(errors) and errors[1:] == sorted(errors[1:])


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("best", "unknown; use one of"),
        ("vip", "allocation.min_samples = 1: must be >= 3"),
        ("gvm:allocation.min_samples=9", "rollouts_per_step = 128: must be >= .* = 144"),
    ],
)
def test_an_entry_that_cannot_be_run_is_named(lab_config, make_pool, entry, problem):
    config = lab_config(16, 128)
    with pytest.raises(ConfigError, match=f"{entry}.*{problem}"):
        simulate_study(config, make_pool([0.5] * 16), [entry], 128, 2)
