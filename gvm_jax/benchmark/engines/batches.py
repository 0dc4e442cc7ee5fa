"""Batches for engines that sample a fixed number of rows at once. Imports the standard library only."""

from collections.abc import Callable


def sample_in_batches(
    prompts: list[list[int]], counts: list[int], size: int, sample: Callable[[list[list[int]]], list]
) -> list:
    """What `sample` finds of `counts[i]` responses of prompt i, ordered by prompt, in batches of up to `size` rows.

    A prompt is a row for each of its samples. Rows are sorted by the length of the prompt: the least padding.

    Args:
      prompts: token ids.
      counts: responses of each prompt.
      size: rows of a batch.
      sample: from the prompts of a batch's rows to their responses, or their lengths.
    """
    rows = [i for i, count in enumerate(counts) for _ in range(count)]
    order = sorted(range(len(rows)), key=lambda row: (len(prompts[rows[row]]), row))
    found = [None] * len(rows)
    for begin in range(0, len(rows), size):
        batch = order[begin : begin + size]
        for row, response in zip(batch, sample([prompts[rows[row]] for row in batch]), strict=True):
            found[row] = response
    return found
