"""The end of a response: the tokens that stop sampling, and the text that is graded."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from gvm_jax.data.errors import DataError
from gvm_jax.data.tokenizer import read_model_json
from gvm_jax.data.vocabulary import check_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER = "The answer."  # an assistant's message, to see what a template writes behind it


@dataclasses.dataclass(frozen=True)
class Endings:
    """The endings of a model's responses."""

    tokenizer: "PreTrainedTokenizerBase"
    stop_ids: tuple[int, ...]  # the first of these is a response's last token; ascending
    turn: int | None  # token that the chat template writes behind an assistant's message; None = no such token
    text_ends: frozenset[int]  # the text ends before the first of these

    def text(self, response: Int[np.ndarray, " n"]) -> str:
        """The text of a response that is graded: up to its end of turn, other special tokens included."""
        end = next((at for at, token_id in enumerate(response) if int(token_id) in self.text_ends), len(response))
        return self.tokenizer.decode(response[:end], skip_special_tokens=False)

    def __str__(self) -> str:
        stops = " or ".join(self.tokenizer.decode([token_id]) or f"the id {token_id}" for token_id in self.stop_ids)
        if self.turn is None:
            return f"a response ends with {stops}; the chat template writes no end of turn behind one"
        turn = self.tokenizer.decode([self.turn])
        if self.turn in self.stop_ids:
            return f"a response ends with {stops}; the chat template's end of turn is {turn}"
        return f"a response ends with {stops}; text behind the chat template's end of turn, {turn}, is not graded"


def find_endings(
    tokenizer: "PreTrainedTokenizerBase", model_path: str, vocab_size: int, names: Sequence[str] = ()
) -> Endings:
    """The endings of a model's responses.

    Args:
      tokenizer: the model's.
      model_path: folder or hub name of the model.
      vocab_size: rows of the model's embedding table.
      names: texts of the stop tokens; () = every `eos_token_id` of generation_config.json and config.json, the
        tokenizer's own, and the chat template's end of turn.

    Raises:
      DataError: a name is not a token, a stop token has no row in the table, or there is no stop token.
    """
    named = [tokenizer.eos_token_id]
    for filename in ("generation_config.json", "config.json"):
        eos_token_id = read_model_json(model_path, filename).get("eos_token_id")
        named += eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
    turn = end_of_turn(tokenizer)
    ends = {token_id for token_id in (*named, turn) if token_id is not None}
    stops = _ids_of(names, tokenizer, model_path) if names else ends
    if not stops:
        raise DataError(
            f"model.path = {model_path!r}: neither generation_config.json, config.json, the tokenizer nor the chat "
            "template names a token that ends a response. Set rollout.stop_tokens."
        )
    where = "rollout.stop_tokens" if names else f"model.path = {model_path!r}, which ends responses with it"
    check_ids(
        sorted(stops), tokenizer, vocab_size, where,
        "It can never be sampled: set rollout.stop_tokens to tokens that the model has.",
    )  # fmt: skip
    added = tokenizer.added_tokens_decoder
    special = {token_id for token_id in stops if token_id in added and added[token_id].special}
    return Endings(tokenizer, tuple(sorted(stops)), turn, frozenset(ends | special))


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The token that the chat template writes behind an assistant's message; None where it writes text or nothing."""
    messages = [{"role": "user", "content": "A question."}, {"role": "assistant", "content": ANSWER}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # jinja's, with no common class: no template, or one that takes no assistant's message
        return None
    _, found, behind = text.rpartition(ANSWER)
    ids = tokenizer(behind.lstrip(), add_special_tokens=False)["input_ids"]
    return ids[0] if found and ids and ids[0] in tokenizer.added_tokens_decoder else None


def _ids_of(names: Sequence[str], tokenizer: "PreTrainedTokenizerBase", model_path: str) -> set[int]:
    vocabulary = tokenizer.get_vocab()
    for name in names:
        if name not in vocabulary:
            raise DataError(
                f"rollout.stop_tokens: {name!r} is not one token of the vocabulary of {model_path!r}. "
                f"Name tokens such as {tokenizer.eos_token!r}, or none to take what the model names."
            )
    return {vocabulary[name] for name in names}
