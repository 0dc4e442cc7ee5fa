"""The tokenizer beside the model's embedding table: ids that spell nothing, and ids that the table has no row for."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

import numpy as np

from gvm_jax.data.errors import DataError
from gvm_jax.data.prompts import PromptSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def textless_ids(
    tokenizer: "PreTrainedTokenizerBase", vocab_size: int, kept: Collection[int] = ()
) -> tuple[range, ...]:
    """Ids below `vocab_size` that the tokenizer lacks or decodes to "", but for those in `kept`; ascending.

    They are rows that pad the table (Qwen2.5 has 151,936 for 151,665 tokens) and holes in the tokenizer's own range.
    """
    # Each twice: some decoders drop a blank at the beginning of a text.
    pairs = [[token_id] * 2 for token_id in range(vocab_size)]
    texts = tokenizer.backend_tokenizer.decode_batch(pairs, skip_special_tokens=False)
    ids = np.array([i for i, text in enumerate(texts) if not text and i not in kept], int)
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    return tuple(range(int(run[0]), int(run[-1]) + 1) for run in runs if len(run))


def check_ids(
    ids: Iterable[int], tokenizer: "PreTrainedTokenizerBase", vocab_size: int, where: str, advice: str
) -> None:
    """Raises DataError for the first id without a row in the embedding table, of which JAX would read another row.

    The message begins with `where`, the origin of the ids, and ends with `advice`.
    """
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise DataError(
                f"{where}: the token {tokenizer.decode([token_id])!r} has the id {token_id}, but the model's embedding "
                f"table has {vocab_size} rows (vocab_size of its config.json). {advice}"
            )


def check_prompts(
    prompts: PromptSet,
    tokenizer: "PreTrainedTokenizerBase",
    vocab_size: int,
    system_prompt: str = "",
    user_template: str = "",
) -> None:
    """Raises DataError for the first prompt with a token without a row in the embedding table of `vocab_size` rows.

    The message names the origin of the token: the problem, `system_prompt`, `user_template` or the chat template.
    """
    for row, tokens, problem in zip(prompts.ids, prompts.tokens, prompts.problems, strict=True):
        if tokens.max() < vocab_size:
            continue
        token_id = int(tokens.max())
        texts = {"the problem": problem, "data.system_prompt": system_prompt, "data.user_template": user_template}
        name = tokenizer.decode([token_id])
        writer = next((writer for writer, text in texts.items() if name in text), "the chat template")
        check_ids(
            [token_id], tokenizer, vocab_size, f"Row {row} (counted from 0)",
            f"It comes from {writer}: take it out there, or use a model that has a row for it.",
        )  # fmt: skip
