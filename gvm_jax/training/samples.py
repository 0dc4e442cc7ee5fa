"""Some of a step's samples as text, for a person who wants to see what the policy writes."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int

from gvm_jax.data import Endings, PromptSet
from gvm_jax.training.sampler import STATUSES, GradedRollouts


def spread(group: Int[np.ndarray, " N"], limit: int) -> Int[np.ndarray, " n"]:
    """Rows of min(limit, N) samples, spread over the prompts that they belong to, in order of prompt.

    The first sample of every prompt, then the second of those that have one, and so on. The last turn, for which there
    are too few left, goes to prompts at even distances. The choice knows nothing of rewards, so shares among the
    chosen are unbiased but for prompts with many samples, which weigh less.
    """
    order = np.argsort(group, kind="stable")
    sorted_group = group[order]
    turn = np.arange(len(order)) - np.searchsorted(sorted_group, sorted_group)  # which sample of its prompt
    chosen: list[int] = []
    for number in range(turn.max(initial=-1) + 1):
        rows = order[turn == number]
        if (left := limit - len(chosen)) <= 0:
            break
        if left < len(rows):
            rows = rows[np.arange(left) * len(rows) // left]
        chosen.extend(rows)
    chosen_rows = np.array(chosen, int)
    return chosen_rows[np.argsort(group[chosen_rows], kind="stable")]


@dataclasses.dataclass(frozen=True)
class SampleTexts:
    """Makes the rows of `samples.jsonl`.

    Attributes:
      prompts: the training prompts.
      endings: of the responses.
      limit: samples of a step at most; 0 = none.
    """

    prompts: PromptSet
    endings: Endings
    limit: int

    def columns(self, prompt_ids: Int[np.ndarray, " m"], graded: GradedRollouts) -> dict[str, list[Any]]:
        """A row for each chosen sample: the problem, the response as the grader saw it, and what came of it."""
        rollouts = graded.rollouts
        rows = spread(np.asarray(rollouts.group[: len(graded.scores)]), self.limit)  # what follows is padding
        ids = np.asarray(prompt_ids)[rollouts.group[rows]]
        positions = self.prompts.positions_of(ids)
        return {
            "prompt_id": ids.tolist(),
            "prompt": [self.prompts.problems[i] for i in positions],
            "reference": [self.prompts.reference_answers[i] for i in positions],
            "response": [self.endings.text(rollouts.response(row)) for row in rows],
            "reward": graded.scores[rows].tolist(),
            "status": [STATUSES[i].value for i in graded.statuses[rows]],
            "tokens": rollouts.response_lengths[rows].tolist(),
            "stopped": rollouts.stopped[rows].tolist(),
        }
