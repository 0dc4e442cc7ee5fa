"""Workloads: prompts and responses as token ids, made once and handed to every engine."""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gvm_jax.config import get_config
from gvm_jax.data import Row, build_prompts, check_ids, find_endings, load_rows, load_tokenizer
from gvm_jax.errors import InputError
from gvm_jax.models.config import Qwen2Config

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

    @property
    def cases(self) -> list[list[int]]:
        """The counts to run it with, one after the other."""
        return [[n] * len(self.prompts) for n in PREFILL_SAMPLES] if self.name == "prefill" else [self.counts]

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


@dataclasses.dataclass(frozen=True)
class Texts:
    """Questions, and answers where a workload takes them, with the model's tokenizer and stop tokens."""

    tokenizer: "PreTrainedTokenizerBase"
    questions: Sequence[str]
    answers: Sequence[str] = ()
    stop_ids: Sequence[int] = ()

    @property
    def pad_id(self) -> int:
        return self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens around."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def render(self, question: str) -> str:
        """A question as a chat message, up to where the response begins."""
        message = [{"role": "user", "content": question}]
        return self.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)

    def check_number(self, wanted: int, workload: str) -> None:
        """InputError unless there are so many questions."""
        if len(self.questions) < wanted:
            raise InputError(f"--data holds {len(self.questions)} questions; workload {workload} takes {wanted}")

    def long(self, texts: Sequence[str], first: int, length: int) -> str:
        """As many of the texts, from number `first` on, as it takes for `length` tokens."""
        text, index = texts[first % len(texts)], first
        while len(self.encode(text)) < length:
            index += 1
            text += " " + texts[index % len(texts)] if " " in text else texts[index % len(texts)]
        return text

    def cut_prompt(self, first: int, length: int) -> list[int]:
        """A chat message of as many questions as it takes, cut to exactly `length` tokens."""
        text = self.long(self.questions, first, length)
        before, _, after = self.render(text).rpartition(text)
        end = self.encode(after)
        if length <= len(end):
            raise InputError(f"prompts of {length} tokens: the chat template alone ends with {len(end)}; ask for more")
        return self.encode(before + text)[: length - len(end)] + end


def grouped(texts: Texts, prompts=8, samples=8, prompt_tokens=120, new_tokens=128, name="grouped") -> Workload:
    """Equal groups of equal lengths: nothing but the speed of prefill and decode."""
    ids = [texts.cut_prompt(first, prompt_tokens) for first in range(prompts)]
    return Workload(name, ids, [samples] * prompts, new_tokens, [], texts.pad_id)


def gsm8k(texts: Texts, prompts=24, new_tokens=400) -> Workload:
    """Real lengths: the first questions, `GVM_COUNTS` samples over and over, each until it stops."""
    texts.check_number(prompts, "gsm8k")
    ids = [texts.encode(texts.render(question)) for question in texts.questions[:prompts]]
    counts = [GVM_COUNTS[i % len(GVM_COUNTS)] for i in range(prompts)]
    return Workload("gsm8k", ids, counts, new_tokens, list(texts.stop_ids), texts.pad_id)


def prefill(texts: Texts, **sizes) -> Workload:
    """The prompts of `grouped` with one new token; run with each of `PREFILL_SAMPLES`."""
    return grouped(texts, samples=max(PREFILL_SAMPLES), new_tokens=1, name="prefill", **sizes)


def cut_answers(texts: Texts, response_tokens: int, name: str, **sizes) -> Workload:
    """The prompts of `grouped`, each with as many of the data's answers as it takes, cut to exactly the same length."""
    workload = grouped(texts, samples=1, new_tokens=response_tokens, name=name, **sizes)
    answers = (texts.long(texts.answers, first, response_tokens) for first in range(len(workload.prompts)))
    return dataclasses.replace(workload, responses=[texts.encode(answer)[:response_tokens] for answer in answers])


def whole_answers(texts: Texts, prompts=16, name="update_lengths") -> Workload:
    """Real lengths: the first questions, each with its answer."""
    texts.check_number(prompts, name)
    ids = [texts.encode(texts.render(question)) for question in texts.questions[:prompts]]
    responses = [texts.encode(answer) for answer in texts.answers[:prompts]]
    longest = max(map(len, responses))
    return Workload(name, ids, [1] * prompts, longest, [texts.pad_id], texts.pad_id, responses=responses)


def agreement(texts: Texts, prompts=4, samples=4) -> Workload:
    """Whatever a step computes with, on responses of real lengths.

    The responses to question i are the data's answers from number i·samples on; the first i + 1 of them count as
    accepted, and log π_old is 0.3·sin(k) off at the k-th token: of rewards and ratios any will do that tell mistakes.
    """
    number = prompts * samples
    base = whole_answers(texts, number, "agreement")
    return dataclasses.replace(
        base,
        prompts=[base.prompts[i // samples] for i in range(number)],
        groups=[i // samples for i in range(number)],
        rewards=[float(i % samples <= i // samples) for i in range(number)],
        shifts=[[0.3 * math.sin(k + i) for k in range(len(response))] for i, response in enumerate(base.responses)],
    )


def step(
    texts: Texts, prompts=8, samples=8, pilot_samples=4, new_tokens=300, system_prompt=None, user_template=None
) -> Workload:
    """A training step on the first questions, `samples` of each on average, pilots included.

    The reference answer follows the last ####, as in GSM8K. The prompts are the config's defaults where none are
    given.
    """
    texts.check_number(prompts, "step")
    data = get_config().data
    system_prompt = data.system_prompt if system_prompt is None else system_prompt
    user_template = user_template or data.user_template
    pairs = zip(texts.questions[:prompts], texts.answers, strict=False)
    rows = [Row(question, answer.rpartition("####")[2].strip()) for question, answer in pairs]
    made = build_prompts(rows, texts.tokenizer, system_prompt, user_template, max_prompt_tokens=1024)
    if len(made) < prompts:
        raise InputError(f"workload step: of the first {prompts} questions of --data only {len(made)} can be used")
    return Workload(
        "step", [list(map(int, tokens)) for tokens in made.tokens], [samples] * prompts, new_tokens,
        list(texts.stop_ids), texts.pad_id, questions=[row.problem for row in rows],
        reference_answers=[row.answer for row in rows], system_prompt=system_prompt, user_template=user_template,
        pilot_samples=pilot_samples,
    )  # fmt: skip


gradient_norms = functools.partial(cut_answers, response_tokens=250, name="gradient_norms")
WORKLOADS = {  # name -> (the function that makes it, the task that an engine is asked for)
    "grouped": (grouped, "rollouts"),
    "gsm8k": (gsm8k, "rollouts"),
    "prefill": (prefill, "rollouts"),
    "gradient_norms": (gradient_norms, "norms"),
    "logprobs": (functools.partial(whole_answers, name="logprobs"), "logprobs"),
    # Rows of equal length, so that there is nothing to pack.
    "update": (functools.partial(cut_answers, response_tokens=136, name="update"), "update"),
    "update_lengths": (whole_answers, "update"),
    "agreement": (agreement, "agreement"),
    "step": (step, "step"),
}


def load_workload(name: str, model: str, data: str, prompts: int = 0) -> Workload:
    """The workload of this name, tokenised with the model's tokenizer.

    Args:
      name: of `WORKLOADS`.
      model: folder.
      data: hub name or file of questions and answers.
      prompts: 0 = the workload's own number.

    Raises:
      InputError: no tokenizer or config.json, tokens that the model's embedding table has no row for, or no or too few
        questions.
    """
    make, task = WORKLOADS[name]
    tokenizer, vocab_size = load_tokenizer(model), Qwen2Config.from_folder(pathlib.Path(model)).vocab_size
    columns = {"problem_column": "question", "answer_column": "question" if task == "rollouts" else "answer"}
    rows = load_rows(data, subset="main", split="test", bad_rows="error", **columns)
    stop_ids = find_endings(tokenizer, model, vocab_size).stop_ids
    texts = Texts(tokenizer, [row.problem for row in rows], [row.answer for row in rows], stop_ids)
    workload = make(texts, **({"prompts": prompts} if prompts else {}))
    ids = sorted({token_id for tokens in (*workload.prompts, *workload.responses) for token_id in tokens})
    check_ids(ids, tokenizer, vocab_size, f"--data={data}, as the model's tokenizer reads it", "Use other data.")
    return workload
