"""The samples that the page shows, bounded in size."""

from typing import Any

from gvm_jax.report.records import Rows, RunRecord

MAX_CHARACTERS = 6_000_000  # of all samples of a page
COLUMNS = ("prompt_id", "prompt", "reference", "response", "reward", "status", "tokens", "stopped")


def texts(runs: list[RunRecord]) -> tuple[list[dict[str, Any]], list[str]]:
    """Samples by run and step, a list for each column, and what is said of those that are left out."""
    kept, said = [], []
    for number, run in enumerate(runs):
        rows = thin(run.samples, MAX_CHARACTERS // len(runs))
        kept += [{"run": number, "step": row["step"], **{name: row[name] for name in COLUMNS}} for row in rows]
        if len(rows) < len(run.samples):
            said.append(
                f"{run.name}: the page has the samples of {len(rows)} steps of {len(run.samples)}, at even distances; "
                "samples.jsonl has all."
            )
    return kept, said


def thin(rows: Rows, characters: int) -> Rows:
    """Every k-th row counted from the last one, with the smallest k whose texts are short enough together."""
    sizes = [sum(map(len, [*row["prompt"], *row["response"]])) for row in rows]
    every = 1
    while sum(sizes[::-1][::every]) > characters and every < len(rows):
        every += 1
    return rows[::-1][::every][::-1]
