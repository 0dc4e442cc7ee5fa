"""Scores of graded samples: as the numbers of `metrics.json` and as a table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from gvm_jax.rewards import Status
from gvm_jax.rewards.scores import Pairs, bootstrap_interval, group_answers, ks, majority, pass_at_k


def summarize(
    records: Sequence[Mapping[str, Any]], samples: int, equivalent: Callable[[Pairs], Sequence[bool]], seed: int
) -> dict[str, Any]:
    """Scores of a data set.

    Args:
      records: lines of `samples.jsonl`, in order; `samples` of each question.
      samples: of a question.
      equivalent: as for `group_answers`.
      seed: of the bootstrap.

    Returns:
      "questions" and "samples"; for each score its "mean" with a 95 % interval, "low" to "high"; "mean_tokens" of an
      answer; the shares "cut_off" at the length limit, and of each status.
    """
    scores = question_scores(records, samples, equivalent)
    low, high = bootstrap_interval(np.stack(list(scores.values()), axis=1), seed)
    shown = {
        name: {"mean": float(of_questions.mean()), "low": float(low[i]), "high": float(high[i])}
        for i, (name, of_questions) in enumerate(scores.items())
    }
    statuses = [record["status"] for record in records]
    return {
        "questions": len(records) // samples,
        "samples": samples,
        "scores": shown,
        "mean_tokens": float(np.mean([len(record["tokens"]) for record in records])),
        "cut_off": float(np.mean([not record["stopped"] for record in records])),
        **{status.value: statuses.count(status.value) / len(records) for status in Status},
    }


def question_scores(
    records: Sequence[Mapping[str, Any]], samples: int, equivalent: Callable[[Pairs], Sequence[bool]]
) -> dict[str, Float[np.ndarray, " q"]]:
    """avg@k, pass@1, pass@2, ..., maj@k of each question; of one sample they are all the same, and avg@1 is enough."""
    correct = np.array([record["status"] == Status.CORRECT.value for record in records]).reshape(-1, samples)
    scores = {f"avg@{samples}": correct.mean(1)}
    if samples == 1:
        return scores
    scores |= {f"pass@{k}": pass_at_k(correct.sum(1), samples, k) for k in ks(samples)}
    answers = [record["answer"] for record in records]
    groups = group_answers([answers[i : i + samples] for i in range(0, len(answers), samples)], equivalent)
    return scores | {f"maj@{samples}": np.array(list(map(majority, correct, groups)))}


def table_rows(summaries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """A column a data set and, with several, their mean; a row a score, with its interval, and what explains it."""
    scores = dict.fromkeys(name for summary in summaries.values() for name in summary["scores"])
    rows = [{"": "questions", **{name: f"{summary['questions']:,}" for name, summary in summaries.items()}}]
    for score in scores:
        found = {name: summary["scores"][score] for name, summary in summaries.items()}
        row = {name: f"{s['mean']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for name, s in found.items()}
        mean = {"mean": f"{np.mean([s['mean'] for s in found.values()]):.3f}"} if len(found) > 1 else {}
        rows.append({"": score, **row, **mean})
    for key, title, form in (
        ("mean_tokens", "tokens, mean", ",.0f"),
        ("cut_off", "cut off", ".1%"),
        (Status.NO_ANSWER.value, "no answer", ".1%"),
    ):
        rows.append({"": title, **{name: format(summary[key], form) for name, summary in summaries.items()}})
    if len(summaries) > 1:
        rows[0]["mean"] = ""
    return rows
