"""What is sampled or measured: prompts and responses as token ids, made once and handed to every engine."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gvm_jax.data import Row, build_prompts
from gvm_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Samples of 24 prompts as GVM spreads them: most prompts get a few, a few get very many. 192 in all, three times 64.
GVM_COUNTS = (2, 1, 16, 4, 3, 1, 32, 2, 8, 4, 1, 32, 3, 2, 8, 4, 1, 16, 3, 2, 32, 4, 8, 3)
PREFILL_SAMPLES = (1, 8, 32)  # n_i of the workload `prefill`


@dataclasses.dataclass(frozen=True)
class Workload:
    """`counts[i]` samples of prompt i, each of up to `max_new_tokens` tokens; drawn, or given by `responses`."""

    name: str
    prompts: list[list[int]]
    counts: list[int]
    max_new_tokens: int
    stop_ids: list[int]  # [] = every response has exactly `max_new_tokens` tokens
    pad_id: int  # for engines that pad
    temperature: float = 1.0
    responses: list[list[int]] = dataclasses.field(default_factory=list)  # one of each prompt; [] = they are drawn
    groups: list[int] = dataclasses.field(default_factory=list)  # of each response, the question's number; [] = its own
    rewards: list[float] = dataclasses.field(default_factory=list)  # of each response; [] = 1
    questions: list[str] = dataclasses.field(default_factory=list)  # the prompts' texts, of a step
    reference_answers: list[str] = dataclasses.field(default_factory=list)  # their answers
    system_prompt: str = ""  # that the prompts were made with
    user_template: str = ""
    pilot_samples: int = 0  # of each prompt's `counts`, where a step has pilots
    shifts: list[list[float]] = dataclasses.field(default_factory=list)  # of each token, log π_old - log π; [] = 0

    def write(self, file: pathlib.Path, settings: dict) -> None:
        """Write the JSON object that engines read: the workload, and the settings that all of them take."""
        file.write_text(json.dumps({**dataclasses.asdict(self), **settings}), encoding="utf-8")

    def check(self, lengths: Sequence[int], counts: Sequence[int]) -> None:
        """ValueError unless an engine's responses are those that were asked for."""
        least = 1 if self.stop_ids else self.max_new_tokens
        if len(lengths) != sum(counts) or not all(least <= length <= self.max_new_tokens for length in lengths):
            raise ValueError(
                f"workload {self.name}: {sum(counts)} responses of {least} to {self.max_new_tokens} tokens asked for, "
                f"found {len(lengths)} of {min(lengths, default=0)} to {max(lengths, default=0)}"
            )


def grouped(
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[str],
    prompts: int = 8,
    samples: int = 8,
    prompt_tokens: int = 120,
    new_tokens: int = 128,
) -> Workload:
    """Equal groups of equal lengths: nothing but the speed of prefill and decode.

    Each prompt is a chat message of as many questions as it takes, cut to exactly `prompt_tokens` tokens.
    """
    ids = [_cut_prompt(tokenizer, questions, first, prompt_tokens) for first in range(prompts)]
    return Workload("grouped", ids, [samples] * prompts, new_tokens, [], _pad_id(tokenizer))


def gsm8k(
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[str],
    stop_ids: Sequence[int],
    prompts: int = len(GVM_COUNTS),
    new_tokens: int = 400,
) -> Workload:
    """Real lengths: the first questions, `GVM_COUNTS` samples over and over, each until it stops."""
    if len(questions) < prompts:
        raise InputError(f"--data holds {len(questions)} questions; workload gsm8k takes {prompts}")
    ids = [_encode(tokenizer, _render(tokenizer, question)) for question in questions[:prompts]]
    counts = [GVM_COUNTS[i % len(GVM_COUNTS)] for i in range(prompts)]
    return Workload("gsm8k", ids, counts, new_tokens, list(stop_ids), _pad_id(tokenizer))


def prefill(tokenizer: "PreTrainedTokenizerBase", questions: Sequence[str], **sizes) -> Workload:
    """The prompts of `grouped` with one new token; run with each of `PREFILL_SAMPLES`."""
    workload = grouped(tokenizer, questions, samples=max(PREFILL_SAMPLES), new_tokens=1, **sizes)
    return dataclasses.replace(workload, name="prefill")


def gradient_norms(
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[str],
    answers: Sequence[str],
    response_tokens: int = 250,
    **sizes,
) -> Workload:
    """The prompts of `grouped`, each with as many of the data's answers as it takes, cut to exactly the same length."""
    workload = grouped(tokenizer, questions, samples=1, new_tokens=response_tokens, **sizes)
    texts = [_long_text(tokenizer, answers, first, response_tokens) for first in range(len(workload.prompts))]
    responses = [_encode(tokenizer, text)[:response_tokens] for text in texts]
    return dataclasses.replace(workload, name="gradient_norms", responses=responses)


def update(
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[str],
    answers: Sequence[str],
    response_tokens: int = 136,
    **sizes,
) -> Workload:
    """As `gradient_norms`, trained on: rows of equal length, so that there is nothing to pack."""
    workload = gradient_norms(tokenizer, questions, answers, response_tokens, **sizes)
    return dataclasses.replace(workload, name="update")


def update_lengths(
    tokenizer: "PreTrainedTokenizerBase", questions: Sequence[str], answers: Sequence[str], prompts: int = 16
) -> Workload:
    """Real lengths: the first questions, each with its answer."""
    if len(questions) < prompts:
        raise InputError(f"--data holds {len(questions)} questions; workload update_lengths takes {prompts}")
    ids = [_encode(tokenizer, _render(tokenizer, question)) for question in questions[:prompts]]
    responses = [_encode(tokenizer, answer) for answer in answers[:prompts]]
    longest = max(map(len, responses))
    pad = _pad_id(tokenizer)
    return Workload("update_lengths", ids, [1] * prompts, longest, [pad], pad, responses=responses)


def logprobs(
    tokenizer: "PreTrainedTokenizerBase", questions: Sequence[str], answers: Sequence[str], prompts: int = 16
) -> Workload:
    """The samples of `update_lengths`, scored."""
    return dataclasses.replace(update_lengths(tokenizer, questions, answers, prompts), name="logprobs")


def agreement(
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[str],
    answers: Sequence[str],
    prompts: int = 4,
    samples: int = 4,
) -> Workload:
    """Whatever a step computes with, on responses of real lengths.

    The responses to question i are the data's answers from number i·samples on; the first i + 1 of them count as
    accepted, and log π_old is 0.3·sin(k) off at the k-th token: of rewards and ratios any will do that tell mistakes.
    """
    number = prompts * samples
    if len(questions) < number:
        raise InputError(f"--data holds {len(questions)} questions; workload agreement takes {number}")
    base = update_lengths(tokenizer, questions, answers, number)
    return dataclasses.replace(
        base,
        name="agreement",
        prompts=[base.prompts[i // samples] for i in range(number)],
        groups=[i // samples for i in range(number)],
        rewards=[float(i % samples <= i // samples) for i in range(number)],
        shifts=[[0.3 * math.sin(k + i) for k in range(len(response))] for i, response in enumerate(base.responses)],
    )


def step(
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[str],
    answers: Sequence[str],
    stop_ids: Sequence[int],
    system_prompt: str,
    user_template: str,
    prompts: int = 8,
    samples: int = 8,
    pilot_samples: int = 4,
    new_tokens: int = 300,
) -> Workload:
    """A training step on the first questions, `samples` of each on average, pilots included.

    The reference_answer answer is what follows the last ####, as in GSM8K.
    """
    if len(questions) < prompts:
        raise InputError(f"--data holds {len(questions)} questions; workload step takes {prompts}")
    rows = [
        Row(question, answer.rpartition("####")[2].strip())
        for question, answer in zip(questions[:prompts], answers, strict=False)
    ]
    made = build_prompts(rows, tokenizer, system_prompt, user_template, max_prompt_tokens=1024)
    if len(made) < prompts:
        raise InputError(f"workload step: of the first {prompts} questions of --data only {len(made)} can be used")
    return Workload(
        "step", [list(map(int, tokens)) for tokens in made.tokens], [samples] * prompts, new_tokens, list(stop_ids),
        _pad_id(tokenizer), questions=[row.problem for row in rows], reference_answers=[row.answer for row in rows],
        system_prompt=system_prompt, user_template=user_template, pilot_samples=pilot_samples,
    )  # fmt: skip


def _cut_prompt(tokenizer, questions: Sequence[str], first: int, length: int) -> list[int]:
    text = _long_text(tokenizer, questions, first, length)
    before, _, after = _render(tokenizer, text).rpartition(text)
    end = _encode(tokenizer, after)
    if length <= len(end):
        raise InputError(f"prompts of {length} tokens: the chat template alone ends with {len(end)}; ask for more")
    return _encode(tokenizer, before + text)[: length - len(end)] + end


def _long_text(tokenizer, texts: Sequence[str], first: int, length: int) -> str:
    """As many of the texts, from `first` on, as it takes for `length` tokens."""
    text, index = texts[first % len(texts)], first
    while len(_encode(tokenizer, text)) < length:
        index += 1
        text += " " + texts[index % len(texts)] if " " in text else texts[index % len(texts)]
    return text


def _render(tokenizer, question: str) -> str:
    message = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)


def _encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _pad_id(tokenizer) -> int:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
