"""The numbers that a run ended with."""

from collections.abc import Sequence

from gvm_jax.report.records import RunRecord

_TOTALS = ("prompts", "rollouts", "sampled_tokens", "trained_tokens", "updates")
_PHASES = ("rollout", "reward", "allocation", "update", "evaluation")


def summary_rows(run: RunRecord) -> list[dict[str, str]]:
    """What the run reached and what it cost, a row each; without what its files do not say."""
    rows = []
    if run.evaluation:
        first, last = run.evaluation[0], run.evaluation[-1]
        rows.append((f"held-out accuracy after step {first['step']}", f"{first['accuracy']:.3f}"))
        rows.append((f"held-out accuracy after step {last['step']}", f"{last['accuracy']:.3f}"))
    if run.metrics:
        last = run.metrics[-1]
        if run.evaluation and run.evaluation[-1]["step"] == last["step"]:
            last = {**last, **run.evaluation[-1]}  # its totals include the evaluation itself
        if "reward/accept_rate" in last:
            rows.append(("accept rate, last step", f"{last['reward/accept_rate']:.3f}"))
        for name in _TOTALS:
            if f"total/{name}" in last:
                rows.append((name.replace("_", " "), f"{last[f'total/{name}']:,}"))
        for phase in _PHASES:
            if f"total/seconds/{phase}" in last:
                rows.append((f"seconds: {phase}", f"{last[f'total/seconds/{phase}']:.1f}"))
    return [{"of the run": name, "": value} for name, value in rows]


def side_by_side(runs: Sequence[RunRecord]) -> list[dict[str, str]]:
    """What several runs reached and what it cost: a row each, a column a run."""
    columns = {run.name: {row["of the run"]: row[""] for row in summary_rows(run)} for run in runs}
    names = dict.fromkeys(name for column in columns.values() for name in column)
    return [{"": name, **{run: column.get(name, "") for run, column in columns.items()}} for name in names]
