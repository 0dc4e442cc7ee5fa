"""Draws the missing samples of an evaluation, and grades again those that the verifier failed on."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from gvm_jax.data import PromptSet
from gvm_jax.evaluation.store import Key, SampleStore
from gvm_jax.rewards import FAILURES, Status, Verdict
from gvm_jax.rollout.policy import Policy
from gvm_jax.runtime import collectives
from gvm_jax.runtime.keys import run_key
from gvm_jax.runtime.progress import SampleProgress
from gvm_jax.training.sampler import GradedSample, Sampler

ROUND = 64  # samples that a slot decodes, on average, between two moments at which all samples have ended


def draw(
    sampler: Sampler, load_policy: Callable[[], Policy], prompts: PromptSet, store: SampleStore, name: str
) -> list[dict[str, Any]]:
    """All samples of the prompts, in order of question and sample; those on disk are not drawn again.

    A sample's tokens depend on (seed, question, sample) and the settings alone, so samples of several calls go
    together. Answers that the verifier failed on are graded again.

    Args:
      sampler: built.
      load_policy: gives the policy; called if there is something to sample.
      prompts: the questions.
      store: of the samples.
      name: of the data set, for the progress.

    Raises:
      Preempted: asked to stop; the samples so far are on disk.
      VerifierFailure: the grader failed on too many answers.
    """
    config, first = sampler.config, jax.process_index() == 0
    samples = config.evaluation.samples
    known = store.load()
    _all_here()  # none writes while others read
    with store:
        failed = [record for record in known.values() if Status(record["status"]) in FAILURES]
        for record in failed[jax.process_index() :: jax.process_count()]:
            verdict = sampler.grader.submit(record["response"], record["reference"]).result()
            store.write(record | _grade(verdict))
        missing = list(missing_runs(prompts.ids, samples, known))
        if missing:
            policy = load_policy()  # compiles, which is no part of the time that is left
            earlier = 0  # tokens of the rounds before
            progress = SampleProgress(
                name, len(prompts) * samples, len(known), lambda: earlier + policy.stats.sampled_tokens,
                jax.process_count(), active=first,
            )  # fmt: skip

            def write(answer: GradedSample) -> None:
                store.write(make_record(sampler, prompts, answer))
                progress.add(len(answer.response), answer.verdict.score > 0)

            size = ROUND * sampler.engine.settings.slots * sampler.engine.replicas * jax.process_count()
            key = run_key(config.seed, "evaluation", 0)
            for number, (ids, first_samples, counts) in enumerate(rounds(missing, size)):
                earlier += policy.stats.sampled_tokens if number else 0
                sampler.sample(
                    policy, prompts, ids, counts, key, config.evaluation.temperature, first_samples, on_graded=write
                )
            progress.show()
    _all_here()
    if first:
        store.finish()
    _all_here()
    records = store.load()
    sampler.grader.check([Verdict(0.0, Status(record["status"]), record["answer"]) for record in records.values()])
    return [records[key] for key in sorted(records)]


def missing_runs(
    ids: Int[np.ndarray, " m"], samples: int, known: Collection[Key] | Mapping[Key, Any]
) -> Iterator[tuple[int, int, int]]:
    """(question, first sample, count) of each run of consecutive samples that are not known."""
    for question in map(int, ids):
        first = None
        for sample in range(samples + 1):
            absent = sample < samples and (question, sample) not in known
            if absent and first is None:
                first = sample
            elif not absent and first is not None:
                yield question, first, sample - first
                first = None


def rounds(
    runs: list[tuple[int, int, int]], size: int
) -> Iterator[tuple[Int[np.ndarray, " r"], Int[np.ndarray, " r"], Int[np.ndarray, " r"]]]:
    """The runs in order, in parts of about `size` samples: what is in memory at once."""
    table = np.array(runs, np.int32)
    part = (np.cumsum(table[:, 2]) - table[:, 2]) // size
    for number in np.unique(part):
        yield tuple(table[part == number].T)


def make_record(sampler: Sampler, prompts: PromptSet, answer: GradedSample) -> dict[str, Any]:
    """A line of `samples.jsonl`."""
    at = int(prompts.positions_of(np.array(answer.prompt_id)))
    return {
        "question": answer.prompt_id,
        "sample": answer.number,
        "prompt": sampler.tokenizer.decode(prompts.tokens[at]),
        "reference": prompts.reference_answers[at],
        "response": answer.text,
        "tokens": answer.response.tolist(),
        "stopped": int(answer.response[-1]) in sampler.endings.stop_ids,
        **_grade(answer.verdict),
    }


def _grade(verdict: Verdict) -> dict[str, Any]:
    return {"status": verdict.status.value, "answer": verdict.answer}


def _all_here() -> None:
    """Returns once all processes are here."""
    collectives.any_process(np.zeros(1, bool))
