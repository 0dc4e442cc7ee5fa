"""The arithmetic of a comparison, and batches of rows."""

import dataclasses
import importlib.util

import pytest

from gvm_jax.benchmark.comparison import Comparison, Spread
from gvm_jax.benchmark.efficiency import Yardstick
from gvm_jax.benchmark.process import ENGINES
from gvm_jax.benchmark.report import COLUMNS, efficiencies, row, show
from gvm_jax.benchmark.workload import Workload
from gvm_jax.models.config import Qwen2Config
from gvm_jax.planning.chips import CHIPS, chip_of

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
WORKLOAD = Workload("x", [[1] * 10, [2] * 20], [2, 0], 40, [], 0)
RUNS = {name: [{**run, "device_bytes": None} for run in runs] for name, runs in RUNS.items()}
NONE = {share: {engine: [] for engine in "ab"} for share in ("mfu", "bandwidth")}
ABOUT = {
    "configured": "so",
    "device": "cpu",
    "versions": {"x": "1"},
    "load_seconds": 3,
    "warm_up_seconds": 4,
    "peak_bytes": 15e8,
}


def test_tokens_per_second_and_their_paired_ratio():
    comparison = Comparison([2, 0], RUNS)
    assert comparison.tokens_per_second("a") == [5, 10, 2]
    assert comparison.tokens_per_second("b") == [2, 8, 1]
    assert comparison.ratio == Spread(2.0, 1.25, 2.5)  # the ratio of the medians would be 2.5
    assert Comparison([2, 0], {"a": RUNS["a"]}).ratio is None


def test_the_table_shows_medians_with_spread(capsys):
    comparison = Comparison([2, 2], RUNS)
    cells = dict(zip(COLUMNS, row(comparison, "a", ABOUT, NONE), strict=True))
    assert cells["samples"] == "2" and cells["tokens/s"] == "5.0 [2.0, 10.0]" and cells["ratio"] == ""
    assert cells["prefill s"] == "1.00 [0.50, 1.50]" and cells["prefill tokens"] == "7"
    assert cells["run GB"] == "0.7"
    assert cells["tokens"] == "10 [6, 40]" and cells["peak GB"] == "1.5" and cells["start s"] == "3 + 4"
    cells = dict(zip(COLUMNS, row(Comparison([2, 1], RUNS), "b", ABOUT, NONE), strict=True))
    assert cells["samples"] == "1-2" and cells["ratio"] == "2.00 [1.25, 2.50]" and cells["prefill s"] == ""
    show(WORKLOAD, {"a": ABOUT, "b": ABOUT}, [comparison])
    assert "2.00 [1.25, 2.50]" in (text := capsys.readouterr().out) and "b: so; cpu (x 1)" in text
    assert "prefill s" in text and "s/sample" not in text, "columns without any value are left out"


def test_norms_are_compared_sample_by_sample():
    norms = {"a": [2.0, 3.0, 5.0], "b": [2.0, 4.0, 5.5]}
    runs = {name: [{**RUNS[name][0], "norms": norms[name]}] for name in "ab"}
    comparison = Comparison([1] * 3, runs)
    assert comparison.norm_difference == pytest.approx(0.25)  # of the second sample
    cells = dict(zip(COLUMNS, row(comparison, "b", ABOUT, NONE), strict=True))
    assert cells["norms differ"] == "2.5e-01" and cells["s/sample"] == "1.33"
    assert Comparison([1] * 3, {"a": runs["a"]}).norm_difference is None
    assert Comparison([1] * 3, RUNS).norm_difference is None


def test_shares_of_the_peak_count_what_the_model_cannot_do_without():
    """A model of one layer without attention weights to speak of, on a chip that does 1 operation a second."""
    network = Qwen2Config(100, 8, 32, 1, 2, 1, 4, 1e6, 1e-6, True)
    chip = dataclasses.replace(CHIPS["h100"], flops=1.0, hbm_bandwidth=1.0)
    layer = 8 * 4 * (2 * 2 + 2 * 1) + 3 * 8 * 32  # weights
    runs = [{"lengths": [1, 2], "seconds": 2.0, "prefill_seconds": 1.0, "steps": 2}]
    comparison = Comparison([2, 0], {"gvm_jax": runs, "hf": runs})
    # Keys that tokens meet: 10 of the prompt meet 1 to 10; samples begin at the 11th. 4 operations for each of 2 x 4.
    keys = sum(range(1, 11)) + 11 + (11 + 12)
    flops = 2 * (10 + 3) * layer + 4 * 2 * 4 * keys + 3 * 2 * 8 * 100
    for task, passes in (("engine", 1), ("norms", 2), ("update", 3)):
        shares = efficiencies(WORKLOAD, comparison, Yardstick(network, chip, task, 2))
        assert shares["mfu"]["hf"] == [pytest.approx(passes * flops / 2)]
        assert (shares["bandwidth"]["hf"] == []) is (task != "engine")
    shares = efficiencies(WORKLOAD, comparison, Yardstick(network, chip, "engine", 2))
    weights, token = layer + 8 * 100, 2 * 1 * 4
    own = 1 + (1 + 2)
    assert shares["bandwidth"]["hf"] == [2 * (2 * weights + token * (own + 10 * 3))]
    assert shares["bandwidth"]["gvm_jax"] == [2 * (2 * weights + token * (own + 10 * 3 // 2))]  # once
    assert efficiencies(WORKLOAD, comparison, None)["mfu"] == {"gvm_jax": [], "hf": []}


def test_devices_are_known_by_what_they_call_themselves():
    assert chip_of("NVIDIA H100 80GB HBM3") is CHIPS["h100"] and chip_of("TPU v5 lite") is CHIPS["v5e"]
    assert chip_of("TPU v5p") is CHIPS["v5p"] and chip_of("TPU v6 lite") is CHIPS["v6e"] and chip_of("cpu") is None
    assert chip_of("TPU v5e") is CHIPS["v5e"] and chip_of("NVIDIA H200") is CHIPS["h200"]


@pytest.mark.parametrize("variant", ["H100 PCIe", "H100 NVL", "GH200 480GB", "H100 80GB HBM3 MIG 1g.10gb"])
def test_a_variant_of_a_chip_does_not_get_its_peaks(variant):
    assert chip_of(f"NVIDIA {variant}") is None


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
