"""The numbers that the page's charts draw, bounded however long a run was."""

import collections
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gvm_jax.report.records import Rows, RunRecord

MAX_POINTS = 400  # of a curve
MAX_BLOCKS = 60  # columns of a chart by step; more steps than that are put together
MAX_WINDOWS = 10  # spans of steps to look at one by one
MAX_PROMPTS = 400  # prompts of such a span
_RATE_BINS = 10
_COSTS = {"rollouts": "total/rollouts", "tokens": "total/sampled_tokens", "updates": "total/updates"}
_NORMAL_95 = 1.96
METRICS = (
    "reward/mean", "reward/accept_rate", "train/loss", "train/gradient_norm", "train/entropy", "train/kl",
    "train/clip_fraction", "rollout/response_tokens", "rollout/truncated", "rollout/logprob_mismatch",
    "rollout/logprob_mismatch_max", "train/truncated_weights", "allocation/ideal_variance_ratio",
    "train/packing_efficiency", "host/resident_bytes", "device/peak_memory_bytes",
)  # fmt: skip


def training(run: RunRecord) -> dict[str, Any]:
    """The curves of `METRICS` that the run has, and of the speed of sampling and of the whole, in tokens a second."""
    curves = {name: [row.get(name) for row in run.metrics] for name in METRICS}
    before = 0.0 if run.metrics and run.metrics[0]["step"] == 1 else math.nan  # lines of earlier steps may be lost
    tokens = np.diff([row.get("total/sampled_tokens", math.nan) for row in run.metrics], prepend=before)
    for name, fields in (
        ("speed/sampling", ("rollout",)),
        ("speed/step", ("rollout", "reward", "allocation", "update")),
    ):
        seconds = [sum(row.get(f"seconds/{field}", 0.0) for field in fields) for row in run.metrics]
        curves[name] = [float(n / s) if s else math.nan for n, s in zip(tokens, seconds, strict=True)]
    return _curves(run.metrics, {name: values for name, values in curves.items() if any(map(_is_number, values))})


def evaluation(run: RunRecord) -> dict[str, Any]:
    """Held-out accuracy with its 95 % interval, where the number of questions is known."""
    accuracy = [row["accuracy"] for row in run.evaluation]
    curves = {"accuracy": accuracy}
    if questions := held_out_questions(run):
        bounds = [wilson(value, questions) for value in accuracy]
        curves |= {"low": [low for low, _ in bounds], "high": [high for _, high in bounds]}
    return _curves(run.evaluation, curves) | {"questions": questions}


def held_out_questions(run: RunRecord) -> int | None:
    """How many questions an evaluation has, by its own line, or by the config if the accuracies agree with it.

    `evaluation.prompts` is a limit: a smaller data set has fewer. Its accuracies are then no multiples of one by it.
    """
    if run.evaluation and (recorded := run.evaluation[-1].get("questions")):
        return int(recorded)
    section = run.config.get("evaluation", {})
    questions, samples = section.get("prompts") or 0, section.get("samples", 1)
    correct = np.array([row["accuracy"] for row in run.evaluation]) * questions * samples
    return questions if questions and np.all(np.abs(correct - correct.round()) < 1e-3) else None


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a binomial share of n; for means of several samples a question it is too wide."""
    z = _NORMAL_95**2 / n
    middle = (share + z / 2) / (1 + z)
    half = math.sqrt(max(share * (1 - share) * z + z**2 / 4, 0.0)) / (1 + z)
    return middle - half, middle + half


def _curves(rows: Rows, curves: dict[str, list]) -> dict[str, Any]:
    """Curves over their steps and costs, in at most `MAX_POINTS` points, first and last among them.

    `seconds` are those of all phases but evaluation, which no training needs.
    """
    kept = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_POINTS)).round().astype(int))
    seconds = [
        row["total/seconds"] - row.get("total/seconds/evaluation", 0.0) if "total/seconds" in row else None
        for row in rows
    ]
    axes = {name: [row.get(total) for row in rows] for name, total in _COSTS.items()}
    axes |= {"steps": [row["step"] for row in rows], "seconds": seconds}
    return {
        **{name: [values[i] for i in kept] for name, values in axes.items()},
        "values": {name: [values[i] for i in kept] for name, values in curves.items()},
    }


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def blocks(rows: Rows, limit: int) -> list[Rows]:
    """Consecutive rows in at most `limit` blocks whose lengths differ by at most one."""
    parts = np.array_split(np.arange(len(rows)), max(min(limit, len(rows)), 1))
    return [[rows[i] for i in part] for part in parts if len(part)]


def spans(parts: Sequence[Rows]) -> list[list[int]]:
    """The first and the last step of each block."""
    return [[part[0]["step"], part[-1]["step"]] for part in parts]


def budget(run: RunRecord) -> dict[str, Any]:
    """Heat map: the share of a block's samples that prompts of an accept-rate bin got, by the rate believed of them."""
    parts = blocks(run.allocation, MAX_BLOCKS)
    edges = np.linspace(0, 1, _RATE_BINS + 1)
    cells = [_shares(*_columns(part, "believed_accept_rate", "count"), edges) for part in parts]
    return {"spans": spans(parts), "bins": _labels(edges), "cells": cells}


def accept_rates(run: RunRecord) -> dict[str, Any]:
    """Heat map: the share of a block's prompts by the accept rate that their samples showed.

    None and all accepted have bins of their own: such prompts say nothing to an estimate that compares samples.
    """
    parts = blocks(run.allocation, MAX_BLOCKS)
    inner = np.linspace(0, 1, _RATE_BINS + 1)
    edges = np.array([0.0, np.nextafter(0, 1), *inner[1:-1], 1.0, np.nextafter(1, 2)])
    cells = []
    for part in parts:
        rates, counts = _columns(part, "accept_rate", "count")
        cells.append(_shares(rates, (counts > 0).astype(float), edges))
    return {"spans": spans(parts), "bins": ["0", *_labels(inner), "1"], "cells": cells}


def windows(run: RunRecord) -> list[dict[str, Any]]:
    """Allocation prompt by prompt in a few spans of steps, at even distances where there are too many prompts."""
    found = []
    for part in blocks(run.allocation, MAX_WINDOWS):
        names = ("prompt_id", "count", "believed_accept_rate", "believed_gradient_norm", "accept_rate")
        columns = dict(zip(("prompt", "count", "rate", "norm", "accepted"), _columns(part, *names), strict=True))
        total = len(columns["count"])
        kept = np.arange(min(total, MAX_PROMPTS)) * total // max(min(total, MAX_PROMPTS), 1)
        columns = {name: column[kept].tolist() for name, column in columns.items()}
        found.append({"span": spans([part])[0], "prompts": total, **columns})
    return found


def phases(run: RunRecord) -> dict[str, Any]:
    """Mean seconds of a block's steps by phase; an evaluation belongs to the step before it, the first to step 1."""
    rows, spent, before = run.metrics, collections.Counter(), 0.0
    for row in run.evaluation if rows else ():
        total = row.get("total/seconds/evaluation", before)
        spent[max(row["step"], rows[0]["step"])] += max(total - before, 0.0)
        before = total
    if spent.total():
        rows = [{**row, "seconds/evaluation": spent[row["step"]]} for row in rows]
    return _means(rows, "seconds/", left_out=("rollout_prefill", "rollout_idle"))  # parts of the rollouts' seconds


def endings(run: RunRecord) -> dict[str, Any]:
    """Mean shares of a block's rollouts by the status of their grading."""
    return _means(run.metrics, "reward/", left_out=("mean", "accept_rate"))


def _means(rows: Rows, prefix: str, left_out: Sequence[str]) -> dict[str, Any]:
    """The means over a block's rows of the fields with a prefix, 0 where a row has none."""
    parts = blocks(rows, MAX_BLOCKS)
    fields = dict.fromkeys(name for row in rows for name in row if name.startswith(prefix))
    names = [name for name in fields if name.removeprefix(prefix) not in left_out]
    means = {name: [float(np.mean([row.get(name, 0.0) for row in part])) for part in parts] for name in names}
    return {"spans": spans(parts), "parts": {name.removeprefix(prefix): values for name, values in means.items()}}


def _columns(part: Rows, *names: str) -> list[np.ndarray]:
    return [np.concatenate([np.asarray(row[name], float) for row in part]) for name in names]


def _shares(rates: np.ndarray, weights: np.ndarray, edges: np.ndarray) -> list[float]:
    """The share of the weights by bin of the rates; a rate that is not a number is in none."""
    sums, _ = np.histogram(rates[np.isfinite(rates)], edges, weights=weights[np.isfinite(rates)])
    return (sums / max(weights.sum(), 1)).tolist()


def _labels(edges: np.ndarray) -> list[str]:
    return [f"{low:.1f}–{high:.1f}" for low, high in itertools.pairwise(edges)]
