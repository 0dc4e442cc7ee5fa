"""Turns rows into tokenised prompts that keep their row numbers as ids."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gvm_jax.data.errors import DataError, by_reason, counted, describe_reasons
from gvm_jax.data.rendering import render
from gvm_jax.data.sources import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOO_LONG = "longer than data.max_prompt_tokens"
UNREADABLE = "reference answer that the verifier cannot read"
UNREADABLE_ADVICE = (  # where most rows are such ones
    "most references cannot be read: where answers end longer solutions, set data.answer_after or "
    "data.answer_from = boxed; gvm-jax inspect shows rows"
)


@dataclasses.dataclass(frozen=True, eq=False)
class PromptSet:
    """The prompts of one data set, tokenised once. A prompt's id is its row's number, whatever is dropped."""

    ids: np.ndarray  # int32[M]: prompt ids kept, ascending
    tokens: list[np.ndarray]  # int32 arrays of at least two tokens, by position in ids
    problems: list[str]  # by position in ids
    reference_answers: list[str]  # by position in ids
    num_rows: int  # rows of the data set: statistics are arrays of this size, indexed by prompt id
    dropped: dict[str, list[int]]  # reason -> numbers of the rows dropped for it
    wording: str = ""  # the text around the problems, from config and chat template, as JSON
    notes: tuple[str, ...] = ()  # remarks for a person

    def __len__(self) -> int:
        return len(self.ids)

    def positions_of(self, prompt_ids: np.ndarray) -> np.ndarray:
        """Positions int[...] of ids int[...] in `ids`, `tokens` and so on. Raises KeyError for an id not in the set."""
        positions = np.searchsorted(self.ids, prompt_ids)
        found = self.ids[np.minimum(positions, len(self) - 1)] == prompt_ids
        if not np.all(found):
            raise KeyError(f"not in the prompt set: {np.asarray(prompt_ids)[~found].tolist()}")
        return positions

    def fingerprint(self) -> str:
        """A hash of ids, problems, reference answers and what is around the problems: equal for equal sets.

        Of texts, not of tokens: a chat template that holds the time gives other tokens in every run.
        """
        digest = hashlib.sha256(self.wording.encode())
        for row in zip(self.ids.tolist(), self.problems, self.reference_answers, strict=True):
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()

    def drop(self, mask: np.ndarray, reason: str) -> "PromptSet":
        """The set without the prompts where `mask` (bool[M]) is True, counted as `dropped[reason]`.

        Raises:
          DataError: no prompt would be left.
        """
        mask = np.asarray(mask, dtype=bool)
        if mask.shape != self.ids.shape:
            raise ValueError(f"the mask has shape {mask.shape}, the set {self.ids.shape}")
        if not mask.any():
            return self
        dropped = self.dropped | {reason: sorted([*self.dropped.get(reason, []), *self.ids[mask].tolist()])}
        if mask.all():
            raise _none_left(self.num_rows, dropped)
        kept = np.flatnonzero(~mask)
        return dataclasses.replace(
            self,
            ids=self.ids[kept],
            tokens=[self.tokens[i] for i in kept],
            problems=[self.problems[i] for i in kept],
            reference_answers=[self.reference_answers[i] for i in kept],
            dropped=dropped,
        )


def build_prompts(
    rows: Sequence[Row],
    tokenizer: "PreTrainedTokenizerBase",
    system_prompt: str,
    user_template: str,
    max_prompt_tokens: int,
) -> PromptSet:
    """Renders each problem with the tokenizer's chat template and tokenises it, as `render` says.

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
    try:
        chat_template = tokenizer.get_chat_template()
    except ValueError:  # it has none, or several without a default
        raise DataError(
            f"model.path: the tokenizer of {tokenizer.name_or_path!r} has no chat template. Put one into "
            "its folder as chat_template.jinja, for example that of the family's instruction-tuned model."
        ) from None
    if "{problem}" not in user_template:
        raise DataError(f"data.user_template = {user_template!r} lacks {{problem}}, the problem's place.")
    dropped = by_reason({number: row.dropped for number, row in enumerate(rows) if row.dropped})
    kept = [number for number, row in enumerate(rows) if not row.dropped]
    if not kept:
        raise _none_left(len(rows), dropped)
    problems = [rows[number].problem for number in kept]
    encoded, spelling = render(problems, kept, tokenizer, system_prompt, user_template)
    tokens = [np.asarray(ids, dtype=np.int32) for ids in encoded]
    notes = []
    if spelling:
        notes.append(f"{counted(spelling)}: the problem spells a special token (as <|im_end|>), encoded as plain text")
    if "strftime_now" in chat_template:
        notes.append("the chat template holds the time (strftime_now): prompts are others at another time")
    lengths = np.array([len(ids) for ids in tokens])
    if lengths.min() < 2:
        place = int(lengths.argmin())
        raise DataError(
            f"Row {kept[place]} (counted from 0): a prompt of {lengths[place]} tokens; at least 2 are needed. "
            f"Put more into data.user_template; the problem is {problems[place]!r}."
        )
    if lengths.min() > max_prompt_tokens:
        raise DataError(
            f"data.max_prompt_tokens = {max_prompt_tokens}: even the shortest prompt has {lengths.min()} "
            "tokens; allow more."
        )
    prompts = PromptSet(
        ids=np.array(kept, dtype=np.int32),
        tokens=tokens,
        problems=problems,
        reference_answers=[rows[number].answer for number in kept],
        num_rows=len(rows),
        dropped=dropped,
        wording=json.dumps([system_prompt, user_template, chat_template]),
        notes=tuple(notes),
    )
    return prompts.drop(lengths > max_prompt_tokens, TOO_LONG)


def repeats(
    ids: Sequence[int],
    problems: Sequence[str],
    reference_answers: Sequence[str],
    equivalent: Callable[[list[tuple[str, str]]], list[bool]],
) -> list[str]:
    """Notes on problems that are there more than once, equal but for white space, and on those with other answers.

    Args:
      ids: numbers of the rows of `problems` and `reference_answers`.
      equivalent: whether the two answers of each pair, different texts, are the same.
    """
    first: dict[str, int] = {}
    pairs = []  # places of a problem's first row and of a later one
    for place, problem in enumerate(problems):
        if (earlier := first.setdefault(" ".join(problem.split()), place)) != place:
            pairs.append((earlier, place))
    differing = [(earlier, later) for earlier, later in pairs if reference_answers[earlier] != reference_answers[later]]
    same = equivalent([(reference_answers[later], reference_answers[earlier]) for earlier, later in differing])
    others = [ids[later] for (_, later), is_same in zip(differing, same, strict=True) if not is_same]
    notes = [f"{counted([ids[later] for _, later in pairs])}: the problem of an earlier row again"] if pairs else []
    if others:
        notes.append(f"{counted(others)}: the problem of an earlier row with another answer, so one of them is wrong")
    return notes


def describe(prompts: PromptSet) -> list[str]:
    """Lines for a person: the rows dropped by reason, and the notes."""
    dropped = [f"dropped   {counted(numbers)}: {reason}" for reason, numbers in sorted(prompts.dropped.items())]
    notes = [UNREADABLE_ADVICE] if 2 * len(prompts.dropped.get(UNREADABLE, ())) > prompts.num_rows else []
    return [*dropped, *(f"note      {note}" for note in (*notes, *prompts.notes))]


def _none_left(num_rows: int, dropped: dict[str, list[int]]) -> DataError:
    return DataError(
        f"None of the data set's {num_rows} rows is left as a prompt. Dropped: {describe_reasons(dropped)}."
    )
