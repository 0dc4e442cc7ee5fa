"""The order of prompts: an endless shuffled stream that any step can look up."""

import grain
import numpy as np

from gvm_jax.data.errors import DataError


class PromptStream:
    """Batches of distinct prompt ids, `stream[step]`, drawn without replacement and reshuffled each epoch.

    A batch is a function of (prompt ids, prompts_per_step, seed, step) alone, so a run that resumes at a step
    skips and repeats nothing. The prompts left over at an epoch's end wait for the next shuffle.

    Args:
      prompt_ids: int[M] distinct ids.
      prompts_per_step: prompts in a batch, candidates included.
      seed: of the shuffles.

    Raises:
      DataError: there are fewer prompts than a step needs.
    """

    def __init__(self, prompt_ids: np.ndarray, prompts_per_step: int, seed: int):
        if not 1 <= prompts_per_step <= len(prompt_ids):
            raise DataError(
                f"prompts_per_step × allocation.prompt_pool = {prompts_per_step}, but there are {len(prompt_ids)} "
                f"prompts. Lower them to 1 to {len(prompt_ids)}, or name a larger data set in data.path."
            )
        self.steps_per_epoch = len(prompt_ids) // prompts_per_step
        self._batches = (
            grain.MapDataset.source(np.asarray(prompt_ids, dtype=np.int32))
            .seed(seed)
            .shuffle()
            .batch(prompts_per_step, drop_remainder=True)
            .repeat()
        )

    def __getitem__(self, step: int) -> np.ndarray:
        """The prompt ids of a step, counted from 0: int32[prompts_per_step]."""
        if step < 0:
            raise IndexError(f"steps count from 0; got {step}")
        return self._batches[step]
