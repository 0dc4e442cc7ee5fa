"""The numbers that a run ended with."""

from collections.abc import Sequence

from gvm_jax.report.records import RunRecord

_TOTALS = ("prompts", "rollouts", "sampled_tokens", "trained_tokens", "updates")
_PHASES = ("rollout", "reward", "allocation", "update", "evaluation")


def final_numbers(run: RunRecord) -> dict[str, str]:
    """What the run reached and what it cost, by name; without what its files do not say."""
    numbers = {}
    for row in (run.evaluation[:1] + run.evaluation[-1:]) if run.evaluation else ():
        numbers[f"held-out accuracy after step {row['step']}"] = f"{row['accuracy']:.3f}"
    if run.metrics:
        last = run.metrics[-1]
        if run.evaluation and run.evaluation[-1]["step"] == last["step"]:
            last = {**last, **run.evaluation[-1]}  # its totals include the evaluation itself
        shown = [("accept rate, last step", "reward/accept_rate", ".3f")]
        shown += [(name.replace("_", " "), f"total/{name}", ",") for name in _TOTALS]
        shown += [(f"seconds: {phase}", f"total/seconds/{phase}", ",.1f") for phase in _PHASES]
        numbers |= {name: format(last[field], form) for name, field, form in shown if field in last}
    return numbers


def summary_rows(run: RunRecord) -> list[dict[str, str]]:
    """The final numbers of one run, a row each, for a table."""
    return [{"of the run": name, "": value} for name, value in final_numbers(run).items()]


def side_by_side(runs: Sequence[RunRecord]) -> list[dict[str, str]]:
    """The final numbers of several runs: a row each, a column a run."""
    columns = {run.name: final_numbers(run) for run in runs}
    names = dict.fromkeys(name for column in columns.values() for name in column)
    return [{"": name, **{run: column.get(name, "") for run, column in columns.items()}} for name in names]
