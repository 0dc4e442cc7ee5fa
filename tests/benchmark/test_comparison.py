"""The arithmetic of a comparison, and batches of rows."""

import importlib.util

import pytest

from gvm_jax.benchmark.comparison import Comparison, Spread
from gvm_jax.benchmark.process import ENGINES
from gvm_jax.benchmark.report import COLUMNS, row, show

RUNS = {
    "a": [
        {"lengths": [6, 4], "seconds": 2.0, "prefill_seconds": 0.5, "stats": {"prefill_tokens": 7}, "peak_bytes": 3e8},
        {
            "lengths": [20, 20],
            "seconds": 4.0,
            "prefill_seconds": 1.5,
            "stats": {"prefill_tokens": 7},
            "peak_bytes": 7e8,
        },
        {"lengths": [3, 3], "seconds": 3.0, "prefill_seconds": 1.0, "stats": {"prefill_tokens": 7}, "peak_bytes": 5e8},
    ],
    "b": [
        {"lengths": [4, 4], "seconds": 4.0, "prefill_seconds": None, "peak_bytes": 1e9},
        {"lengths": [9, 7], "seconds": 2.0, "prefill_seconds": None, "peak_bytes": 1e9},
        {"lengths": [2, 2], "seconds": 4.0, "prefill_seconds": None, "peak_bytes": 1e9},
    ],
}
ABOUT = {"configured": "so", "versions": {"x": "1"}, "load_seconds": 3, "warm_up_seconds": 4, "peak_bytes": 15e8}


def test_tokens_per_second_and_their_paired_ratio():
    comparison = Comparison([2, 0], RUNS)
    assert comparison.tokens_per_second("a") == [5, 10, 2]
    assert comparison.tokens_per_second("b") == [2, 8, 1]
    assert comparison.ratio == Spread(2.0, 1.25, 2.5)  # the ratio of the medians would be 2.5
    assert Comparison([2, 0], {"a": RUNS["a"]}).ratio is None


def test_the_table_shows_medians_with_spread(capsys):
    comparison = Comparison([2, 2], RUNS)
    cells = dict(zip(COLUMNS, row(comparison, "a", ABOUT), strict=True))
    assert cells["samples"] == "2" and cells["tokens/s"] == "5.0 [2.0, 10.0]" and cells["ratio"] == ""
    assert cells["prefill s"] == "1.00 [0.50, 1.50]" and cells["prefill tokens"] == "7"
    assert cells["run GB"] == "0.7"
    assert cells["tokens"] == "10 [6, 40]" and cells["peak GB"] == "1.5" and cells["start s"] == "3 + 4"
    cells = dict(zip(COLUMNS, row(Comparison([2, 1], RUNS), "b", ABOUT), strict=True))
    assert cells["samples"] == "1-2" and cells["ratio"] == "2.00 [1.25, 2.50]" and cells["prefill s"] == ""
    show({"a": ABOUT, "b": ABOUT}, [comparison])
    assert "2.00 [1.25, 2.50]" in (text := capsys.readouterr().out) and "b: so (x 1)" in text
    assert "prefill s" in text and "s/sample" not in text, "columns without any value are left out"


def test_norms_are_compared_sample_by_sample():
    norms = {"a": [2.0, 3.0, 5.0], "b": [2.0, 4.0, 5.5]}
    runs = {name: [{**RUNS[name][0], "norms": norms[name]}] for name in "ab"}
    comparison = Comparison([1] * 3, runs)
    assert comparison.norm_difference == pytest.approx(0.25)  # of the second sample
    cells = dict(zip(COLUMNS, row(comparison, "b", ABOUT), strict=True))
    assert cells["norms differ"] == "2.5e-01" and cells["s/sample"] == "1.33"
    assert Comparison([1] * 3, {"a": runs["a"]}).norm_difference is None
    assert Comparison([1] * 3, RUNS).norm_difference is None


@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_batches_hold_all_rows_sorted_by_prompt_length(size):
    spec = importlib.util.spec_from_file_location("batches", ENGINES / "batches.py")
    batches = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(batches)
    prompts, seen = [[1] * 5, [2] * 3, [3], [4] * 3], []

    def sample(rows):
        assert len(rows) <= size
        seen.extend(rows)
        return [10 * prompt[0] for prompt in rows]

    lengths = batches.sample_in_batches(prompts, [2, 1, 0, 3], size, sample)
    assert lengths == [10, 10, 20, 40, 40, 40]
    assert seen == [[2] * 3, [4] * 3, [4] * 3, [4] * 3, [1] * 5, [1] * 5]
