"""A run's parts, built from its config, and the two halves of a step: collect graded rollouts, update the policy."""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from gvm_jax.allocation.allocator import Allocator
from gvm_jax.allocation.strategy import Progress
from gvm_jax.config import OnResume, on_resume, shown
from gvm_jax.data import PromptStream
from gvm_jax.data.prompts import describe
from gvm_jax.models.sharding import replicated
from gvm_jax.rewards import Verdict
from gvm_jax.rewards.scores import group_answers, ks, majority, pass_at_k
from gvm_jax.rollout.policy import Policy
from gvm_jax.runtime import collectives
from gvm_jax.runtime.keys import run_key
from gvm_jax.runtime.live import LiveLine
from gvm_jax.runtime.mesh import describe_devices, put
from gvm_jax.training.sampler import GradedRollouts, GradedSample, Sampler
from gvm_jax.training.state import TrainState
from gvm_jax.training.step import StepMetrics, TrainStep


class Trainer(contextlib.AbstractContextManager):
    """Everything that a run is made of but its state. A context manager: it owns the grader's processes.

    All that needs no device comes first, so that bad input is an error before any device work.

    Attributes:
      sampler: model, rollout engine, tokenizer and grader.
      prompts, held_out: training and evaluation data; `held_out` is None without an `evaluation.path`.
      stream: candidates of each step.
      step: settings and functions of the train step.
      fingerprints: of model and data, by the config's section.

    Args:
      config: validated.
      check_interrupt: called between blocks of sampling; may raise to give up.
      live: shows phases and sampled tokens.
    """

    def __init__(self, config, check_interrupt: Callable[[], None] = lambda: None, live: LiveLine | None = None):
        self.config = config
        Allocator.from_config(config.allocation)  # its fields must suit the strategy
        self.sampler = sampler = Sampler(config, check_interrupt, live)
        self.timer = sampler.timer
        with contextlib.ExitStack() as stack:
            stack.enter_context(sampler)
            self.prompts = sampler.load_prompts("data", config.data.path)
            candidates = config.prompts_per_step * config.allocation.prompt_pool
            self.stream = PromptStream(self.prompts.ids, candidates, config.seed)
            held_out = config.evaluation.path
            self.held_out = sampler.load_prompts("evaluation", held_out) if held_out else None
            sampler.build()
            self.step = TrainStep.from_config(config, sampler.model, sampler.mesh, self.prompts.num_rows)
            self.fingerprints = {"data": self.prompts.fingerprint(), "model": sampler.fingerprint}
            if self.held_out:
                self.fingerprints["evaluation"] = self.held_out.fingerprint()
            self._close = stack.pop_all().close

    def __exit__(self, *_) -> None:
        """Ends the grader's processes."""
        self._close()

    def initial_state(self) -> TrainState:
        """The state before the first step, with the weights of `model.path`."""
        return self.step.jitted.initial_state(self.sampler.load_params(), self.stream[0])

    def collect(self, state: TrainState) -> tuple[TrainState, GradedRollouts]:
        """Samples and grades the step's prompts: `state.counts` of each, after pilots or in rounds where asked for.

        Returns:
          The state for `update` (pilots move its statistics and counts on), and the rollouts.
        """
        with self.timer("rollout"):
            policy = Policy(self.sampler.engine, state.params)
        if self.step.pilot_samples:
            return self._pilot_and_rest(policy, state)
        if self.step.allocator.strategy.rounds:
            return state, self._rounds(policy, state)
        return state, self._sample(policy, state, np.asarray(state.counts))

    def update(
        self, state: TrainState, rollouts: GradedRollouts, candidates: Int[np.ndarray, " pool"]
    ) -> tuple[TrainState, StepMetrics]:
        """The jitted train step on graded rollouts; `candidates` are those of the next step.

        Its arguments are put on the devices here. Any other transfer from or to the host is an error, since it would
        make the devices wait at every step.
        """
        batch = put((rollouts.rollouts, rollouts.rewards, candidates), replicated(self.sampler.mesh))
        with jax.transfer_guard("disallow"):
            return self.step.jitted.train_step(state, *batch)

    def _sample(
        self, policy: Policy, state: TrainState, counts: Int[np.ndarray, " m"], first_sample=0
    ) -> GradedRollouts:
        prompt_ids = np.asarray(state.prompt_ids)
        lengths = np.asarray(self.step.jitted.response_length(state.statistics, prompt_ids))
        key = run_key(self.config.seed, "rollouts", int(state.step))
        temperature = self.config.rollout.temperature
        return self.sampler.sample(policy, self.prompts, prompt_ids, counts, key, temperature, first_sample, lengths)

    def _pilot_and_rest(self, policy: Policy, state: TrainState) -> tuple[TrainState, GradedRollouts]:
        pilots = self.step.pilot_samples
        pilot = self._sample(policy, state, np.full(len(state.prompt_ids), pilots, np.int32))
        with self.timer("allocation"):
            after = self.step.jitted.after_pilot(state, pilot.rollouts, pilot.scores)
            state = state.replace(**dict(zip(("statistics", "counts", "allocation"), after, strict=True)))
            counts = np.asarray(state.counts)
        return state, GradedRollouts.concatenate([pilot, self._sample(policy, state, counts, first_sample=pilots)])

    def _rounds(self, policy: Policy, state: TrainState) -> GradedRollouts:
        """Round after round until the strategy asks for no more; rows by prompt, then the padding up to the budget."""
        counts, parts = np.asarray(state.counts), []
        trials, successes = np.zeros_like(counts), np.zeros_like(counts)
        while counts.any():
            part = self._sample(policy, state, counts, first_sample=trials)
            parts.append(part)
            trials = trials + counts
            successes = successes + np.bincount(part.rollouts.group, part.scores > 0, len(counts)).astype(np.int32)
            with self.timer("allocation"):
                counts = np.asarray(self.step.jitted.next_round(Progress(successes, trials, np.int32(len(parts)))))
        graded = GradedRollouts.concatenate(parts).by_prompt()
        return dataclasses.replace(graded, rollouts=graded.rollouts.pad(self.step.budget, group=len(counts)))

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Scores of k = `evaluation.samples` samples of each held-out prompt, with the same random numbers every time.

        Returns:
          "accuracy", which is avg@k, and "questions", their number; for k > 1 "pass@2", "pass@4", ... and "maj@k" too.
        """
        samples = self.config.evaluation.samples
        answers = collections.defaultdict(lambda: [None] * samples)  # of the prompts that this process samples

        def keep(sample: GradedSample) -> None:
            answers[sample.prompt_id][sample.number] = sample.verdict

        with self.timer("evaluation"):
            policy = Policy(self.sampler.engine, state.params)
        graded = self.sampler.sample(
            policy, self.held_out, self.held_out.ids, np.full(len(self.held_out), samples, np.int32),
            run_key(self.config.seed, "evaluation", 0), self.config.evaluation.temperature,
            phases=("evaluation", "evaluation"), on_graded=keep,
        )  # fmt: skip
        correct = np.bincount(graded.rollouts.group, graded.scores > 0, len(self.held_out))
        passed = {f"pass@{k}": float(pass_at_k(correct, samples, k).mean()) for k in ks(samples) if k > 1}
        voted = {f"maj@{samples}": self._majority(list(answers.values()))} if samples > 1 else {}
        return {"accuracy": float(graded.scores.mean()), "questions": len(self.held_out), **passed, **voted}

    def _majority(self, verdicts: Sequence[Sequence[Verdict]]) -> float:
        """maj@k over all processes, each of which has the verdicts of whole prompts."""
        with self.timer("evaluation"):
            texts = [[verdict.answer for verdict in of_prompt] for of_prompt in verdicts]
            groups = group_answers(texts, self.sampler.grader.equivalent)
            correct = [np.array([verdict.score > 0 for verdict in of_prompt]) for of_prompt in verdicts]
            mine = np.array([majority(*pair) for pair in zip(correct, groups, strict=True)], np.float64)
            return float(collectives.gather_rows(mine).mean())


def describe_run(trainer: Trainer) -> list[str]:
    """The first lines of a run: model, data, step, rollouts and devices."""
    config, sampler = trainer.config, trainer.sampler
    lines = [
        f"model     {config.model.path}: {sampler.model_summary}",
        sampler.describe_tokens(),
        f"data      {config.data.path}: {len(trainer.prompts)} prompts; an epoch is "
        f"{trainer.stream.steps_per_epoch} steps",
        *describe(trainer.prompts),
    ]
    if trainer.held_out:
        lines += [f"held out  {config.evaluation.path}: {len(trainer.held_out)} prompts", *describe(trainer.held_out)]
    return [
        *lines,
        f"step      {config.prompts_per_step} prompts, {config.rollouts_per_step} rollouts, "
        f"{config.optimizer.updates_per_step} updates; {config.objective.algorithm}, "
        f"allocation {config.allocation.strategy} ({config.allocation.mode})",
        f"rollouts  {sampler.engine.replicas} × {sampler.engine.settings.slots} slots, attention "
        f"{sampler.engine.kernels}, weights {sampler.engine.weight_dtype}, KV cache "
        f"{sampler.engine.cache_bytes / 2**20:.0f} MiB",
        f"devices   {describe_devices()}; mesh " + " x ".join(f"{k} {v}" for k, v in sampler.mesh.shape.items()),
    ]


def describe_resume(step: int | None, changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """One line of where a run goes on and which fields changed; nothing for a run that begins.

    Args:
      step: of the checkpoint; None = there is none.
      changes: (old, new) by field.
    """
    if step is None:
        return []
    parts = [f"resumes   at step {step}", *(shown(name, *values) for name, values in changes.items())]
    kinds = set(map(on_resume, changes))
    if OnResume.ROUNDING in kinds:
        parts.append("so float results may differ in the last bits")
    return ["; ".join(parts)]
