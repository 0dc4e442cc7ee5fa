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
    """The ids of the table that the tokenizer does not have or spells as nothing, ascending.

    Rows that pad the table (Qwen2.5 has 151,936 for 151,665 tokens) and holes in the tokenizer's own range.

    Args:
      tokenizer: the model's.
      vocab_size: rows of the embedding table.
      kept: ids that are left out of the result.
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
    """DataError for the first id that the embedding table has no row for. JAX would read another row in silence.

    Args:
      ids: of tokens.
      tokenizer: the model's.
      vocab_size: rows of the embedding table.
      where: what has the tokens, at the beginning of the message.
      advice: the end of the message.
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
    """DataError for the first prompt with a token that the embedding table has no row for; it names who wrote it.

    Args:
      prompts: whose tokens are looked at.
      tokenizer: the model's.
      vocab_size: rows of the embedding table.
      system_prompt: that the prompts were made with.
      user_template: that the prompts were made with.
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
