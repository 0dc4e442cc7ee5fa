"""Turns rows into tokenised prompts that keep their row numbers as ids."""

import collections
import dataclasses
import hashlib
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gvm_jax.data.errors import DataError
from gvm_jax.data.sources import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOO_LONG = "longer than data.max_prompt_tokens"
UNREADABLE = "reference answer that the verifier cannot read"
# Where most rows are such ones.
UNREADABLE_ADVICE = (
    "most references cannot be read: where answers end longer solutions, set data.answer_after or "
    "data.answer_from = boxed; gvm-jax inspect shows rows"
)


@dataclasses.dataclass(frozen=True, eq=False)
class PromptSet:
    """The prompts of one data set, tokenised once. A prompt's id is its row's number, whatever is dropped."""

    ids: np.ndarray  # int32[M]: prompt ids kept, ascending
    tokens: list[np.ndarray]  # int32 arrays of at least two tokens, by position in ids
    problems: list[str]  # by position in ids
    golds: list[str]  # reference answers, by position in ids
    num_rows: int  # rows of the data set: statistics are arrays of this size, indexed by prompt id
    dropped: dict[str, int]  # reason -> rows dropped for it

    def __len__(self) -> int:
        """The number M of prompts kept."""
        return len(self.ids)

    def positions_of(self, prompt_ids: np.ndarray) -> np.ndarray:
        """Positions in `ids`, `tokens`, `problems` and `golds`.

        Args:
          prompt_ids: int[...] ids, each kept in this set.

        Returns:
          int[...] positions.

        Raises:
          KeyError: an id is not in the set.
        """
        positions = np.searchsorted(self.ids, prompt_ids)
        found = self.ids[np.minimum(positions, len(self) - 1)] == prompt_ids
        if not np.all(found):
            raise KeyError(f"not in the prompt set: {np.asarray(prompt_ids)[~found].tolist()}")
        return positions

    def fingerprint(self) -> str:
        """A hash of ids, prompts and reference answers: equal for equal sets."""
        digest = hashlib.sha256()
        for prompt_id, tokens, gold in zip(self.ids, self.tokens, self.golds, strict=True):
            digest.update(f"{prompt_id} {len(tokens)} {len(gold)} ".encode() + tokens.tobytes())
            digest.update(gold.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def drop(self, mask: np.ndarray, reason: str) -> "PromptSet":
        """The set without some prompts, counted under a reason.

        Args:
          mask: bool[M], True where a prompt is dropped.
          reason: the key in `dropped`.

        Raises:
          DataError: no prompt would be left.
        """
        mask = np.asarray(mask, dtype=bool)
        if mask.shape != self.ids.shape:
            raise ValueError(f"the mask has shape {mask.shape}, the set {self.ids.shape}")
        if not mask.any():
            return self
        dropped = dict(collections.Counter(self.dropped) + collections.Counter({reason: int(mask.sum())}))
        if mask.all():
            raise DataError(f"None of the data set's {self.num_rows} rows is left as a prompt. Dropped: {dropped}.")
        kept = np.flatnonzero(~mask)
        return dataclasses.replace(
            self,
            ids=self.ids[kept],
            tokens=[self.tokens[i] for i in kept],
            problems=[self.problems[i] for i in kept],
            golds=[self.golds[i] for i in kept],
            dropped=dropped,
        )


def build_prompts(
    rows: Sequence[Row],
    tokenizer: "PreTrainedTokenizerBase",
    system_prompt: str,
    user_template: str,
    max_prompt_tokens: int,
) -> PromptSet:
    """Renders each problem with the tokenizer's chat template and tokenises it.

    Args:
      rows: problems and reference answers; those marked as dropped are, and counted by their reasons.
      tokenizer: one with a chat template.
      system_prompt: text of the system message; "" = no such message.
      user_template: text of the user message; `{problem}` is replaced, other braces are kept.
      max_prompt_tokens: longer prompts are dropped and counted.

    Raises:
      DataError: no chat template, one that refuses the messages, characters that the tokenizer does not know,
        a prompt of fewer than two tokens, or no prompt short enough.
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"model.path: the tokenizer of {tokenizer.name_or_path!r} has no chat template. Put one into "
            "its folder as chat_template.jinja, for example that of the family's instruction-tuned model."
        )
    if "{problem}" not in user_template:
        raise DataError(f"data.user_template = {user_template!r} lacks {{problem}}, the problem's place.")
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages = [[*system, {"role": "user", "content": user_template.replace("{problem}", row.problem)}] for row in rows]
    tokens = [np.asarray(ids, dtype=np.int32) for ids in _encode(messages, tokenizer)]
    lengths = np.array([len(ids) for ids in tokens])
    if lengths.min() < 2:
        number = int(lengths.argmin())
        raise DataError(
            f"Row {number} (counted from 0): a prompt of {lengths[number]} tokens; at least 2 are needed. "
            f"Put more into data.user_template; the problem is {rows[number].problem!r}."
        )
    if lengths.min() > max_prompt_tokens:
        raise DataError(
            f"data.max_prompt_tokens = {max_prompt_tokens}: even the shortest prompt has {lengths.min()} "
            "tokens; allow more."
        )
    prompts = PromptSet(
        ids=np.arange(len(rows), dtype=np.int32),
        tokens=tokens,
        problems=[row.problem for row in rows],
        golds=[row.answer for row in rows],
        num_rows=len(rows),
        dropped={},
    )
    marks = np.array([row.dropped for row in rows])
    for reason in sorted(set(marks) - {""}):
        prompts = prompts.drop(marks[prompts.ids] == reason, str(reason))
    return prompts.drop(lengths[prompts.ids] > max_prompt_tokens, TOO_LONG)


def _encode(messages: list[list[dict]], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """The token ids of each conversation, checked to spell what the chat template rendered."""
    name = repr(tokenizer.name_or_path)
    try:
        texts = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        # The template has written the special tokens already.
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    except Exception as error:  # jinja's and the tokenizer's own errors have no common class
        raise DataError(
            f"model.path: the tokenizer of {name} cannot take the prompts: {error}. "
            f"Check data.system_prompt and data.user_template; the first messages are {messages[0]}."
        ) from error
    # A small vocabulary silently drops what it does not hold. Qwen2.5 normalises to NFC before it encodes.
    decoded = tokenizer.batch_decode(encoded, clean_up_tokenization_spaces=False)
    for number, (text, kept) in enumerate(zip(texts, decoded, strict=True)):
        if kept != unicodedata.normalize("NFC", text):
            raise DataError(
                f"Row {number} (counted from 0): the tokenizer of {name} loses characters. The prompt is "
                f"{text[:300]!r}, its tokens spell {kept[:300]!r}. Use data.system_prompt, "
                "data.user_template and problems that its vocabulary can spell."
            )
    return encoded
