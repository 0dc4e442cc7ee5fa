"""The samples that the page shows, with what their prompts got, bounded in size."""

from typing import Any

from gvm_jax.report.records import Rows, RunRecord

MAX_CHARACTERS = 6_000_000  # of all samples of a page
COLUMNS = ("prompt_id", "prompt", "reference", "response", "reward", "status", "tokens", "stopped")
PROMPT_COLUMNS = {
    "count": "count",
    "p": "believed_accept_rate",
    "G": "believed_gradient_norm",
    "accepted": "accept_rate",
}


def texts(runs: list[RunRecord]) -> tuple[list[dict[str, Any]], list[str]]:
    """Samples by run and step, a list for each column; and a line on each run of which some are left out.

    `prompts` has by prompt id the count, the estimates of p and G that it rests on, and the accept rate of the samples.
    """
    kept, said = [], []
    for number, run in enumerate(runs):
        rows = thin(run.samples, MAX_CHARACTERS // len(runs))
        allocation = {row["step"]: row for row in run.allocation}
        for row in rows:
            prompts = _prompts(allocation.get(row["step"], {"prompt_id": []}), set(row["prompt_id"]))
            columns = {name: row[name] for name in COLUMNS}
            kept.append({"run": number, "step": row["step"], "prompts": prompts, "columns": columns})
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


def _prompts(step: dict[str, Any], wanted: set[int]) -> dict[str, dict[str, Any]]:
    return {
        str(prompt): {name: step[column][i] for name, column in PROMPT_COLUMNS.items()}
        for i, prompt in enumerate(step["prompt_id"])
        if prompt in wanted
    }
