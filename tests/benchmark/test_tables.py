"""The arithmetic of a comparison, its table, and batches of rows."""

import dataclasses
import importlib.util

import pytest

from gvm_jax.benchmark.agreement import differences
from gvm_jax.benchmark.efficiency import Yardstick
from gvm_jax.benchmark.engine_comparison import Comparison, Spread
from gvm_jax.benchmark.engine_process import ENGINES
from gvm_jax.benchmark.tables import Result
from gvm_jax.benchmark.workloads import Workload
from gvm_jax.models.config import Qwen2Config
from gvm_jax.planner.topologies import CHIPS


def run(lengths, seconds, prefill=None, **results):
    return {"lengths": lengths, "seconds": seconds, "prefill_seconds": prefill, "device_bytes": None, **results}


RUNS = {
    "a": [
        run([6, 4], 2.0, 0.5, peak_bytes=3e8),
        run([20, 20], 4.0, 1.5, peak_bytes=7e8),
        run([3, 3], 3.0, 1.0, peak_bytes=5e8),
    ],
    "b": [run(lengths, seconds, peak_bytes=1e9) for lengths, seconds in (([4, 4], 4.0), ([9, 7], 2.0), ([2, 2], 4.0))],
}
WORKLOAD = Workload("x", [[1] * 10, [2] * 20], [2, 0], 40, [], 0)
ABOUT = {"configured": "so", "device": "cpu", "versions": {"x": "1"}, "load_seconds": 3, "warm_up_seconds": 4}
ABOUT = {engine: {**ABOUT, "peak_bytes": 15e8} for engine in "ab"}


def row(comparison, engine):
    return Result(WORKLOAD, {}, ABOUT, [comparison]).row(comparison, engine)


def test_tokens_per_second_and_their_paired_ratio():
    comparison = Comparison([2, 0], RUNS)
    assert comparison.tokens_per_second("a") == [5, 10, 2]
    assert comparison.tokens_per_second("b") == [2, 8, 1]
    assert comparison.ratio == Spread(2.0, 1.25, 2.5)  # the ratio of the medians would be 2.5
    assert Comparison([2, 0], {"a": RUNS["a"]}).ratio is None


def test_the_table_shows_medians_with_spread(capsys):
    comparison, found = Comparison([2, 2], RUNS), {"": "a", "samples": "2", "tokens/s": "5.0 [2.0, 10.0]"}
    found |= {"prefill s": "1.00 [0.50, 1.50]", "run GB": "0.7", "tokens": "10 [6, 40]"}
    assert found.items() <= row(comparison, "a").items() and "ratio" not in row(comparison, "a")
    found = {"samples": "1-2", "ratio": "2.00 [1.25, 2.50]", "prefill s": "", "peak GB": "1.5", "start s": "3 + 4"}
    assert found.items() <= row(Comparison([2, 1], RUNS), "b").items()
    Result(WORKLOAD, {}, ABOUT, [comparison]).show()
    assert "2.00 [1.25, 2.50]" in (text := capsys.readouterr().out) and "b: so; cpu (x 1)" in text
    assert "prefill s" in text and "s/sample" not in text, "columns without any value are left out"


def test_results_are_compared_sample_by_sample():
    norms = {"a": [2.0, 3.0, 5.0], "b": [2.0, 4.0, 5.5]}
    runs = {name: [{**RUNS[name][0], "norms": norms[name]}] for name in "ab"}
    found = differences(*runs.values())
    assert found == {"norms differ": pytest.approx(0.25)}  # of the second sample
    cells = row(Comparison([1] * 3, runs, found), "b")
    assert cells["norms differ"] == "2.5e-01" and cells["s/sample"] == "1.33"
    assert differences(*RUNS.values()) == {}
    scored = {"a": [[-1.0, -2.0], [-3.0]], "b": [[-1.0, -2.5], [-3.1]]}
    assert differences(*([{"logprobs": x}] for x in scored.values())) == {"log π differs": pytest.approx(0.2)}
    updates = {"a": [(1.0, 2.0), (1.0, 3.0)], "b": [(1.0, 2.0), (2.0, 2.0)]}
    updates = [[{"loss": x, "gradient_norm": y} for x, y in pairs] for pairs in updates.values()]
    assert differences(*updates) == {"updates differ": pytest.approx(0.5)}  # of the second update


def test_shares_of_the_peak_count_what_the_model_cannot_do_without():
    """A model of one layer without attention weights to speak of, on a chip that does 1 operation a second."""
    network = Qwen2Config(100, 8, 32, 1, 2, 1, 4, 1e6, 1e-6, True)
    chip = dataclasses.replace(CHIPS["h100"], flops=1.0, hbm_bandwidth=1.0)
    layer = 8 * 4 * (2 * 2 + 2 * 1) + 3 * 8 * 32  # weights
    alone, together = run([1, 2], 2.0, 1.0, steps=2), run([1, 2], 2.0, 1.0, steps=2, samples_per_read=8)
    comparison = Comparison([2, 0], {"gvm_jax": [together], "hf": [alone]})
    # Keys that tokens meet: 10 of the prompt meet 1 to 10; samples begin at the 11th. 4 operations for each of 2 x 4.
    keys = sum(range(1, 11)) + 11 + (11 + 12)
    flops = 2 * (10 + 3) * layer + 4 * 2 * 4 * keys + 3 * 2 * 8 * 100
    for task, passes in (("rollouts", 1), ("norms", 2), ("update", 3)):
        result = Result(WORKLOAD, {}, {}, [], Yardstick(network, chip, task, 2))
        assert result.shares("mfu", comparison, "hf") == [pytest.approx(passes * flops / 2)]
        assert (result.shares("bandwidth", comparison, "hf") == []) is (task != "rollouts")
    result = Result(WORKLOAD, {}, {}, [], Yardstick(network, chip, "rollouts", 2))
    weights, token, own = layer + 8 * 100, 2 * 1 * 4, 1 + (1 + 2)
    assert result.shares("bandwidth", comparison, "hf") == [2 * (2 * weights + token * (own + 10 * 3))]
    once = 2 * (2 * weights + token * (own + 10 * 3 // 2))
    assert result.shares("bandwidth", comparison, "gvm_jax") == [once], "a kernel reads the prompt for both"
    assert Result(WORKLOAD, {}, {}, []).shares("mfu", comparison, "hf") == []


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
