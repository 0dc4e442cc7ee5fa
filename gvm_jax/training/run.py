"""The parts of a run, built from its config: data, model, rollout engine, grader and the jitted step."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gvm_jax.allocation.allocator import Allocator
from gvm_jax.allocation.strategies import Progress
from gvm_jax.config import RULES, OnResume, shown
from gvm_jax.data import PromptStream
from gvm_jax.data.prompts import describe
from gvm_jax.models.sharding import replicated
from gvm_jax.rewards import Verdict
from gvm_jax.rewards.scores import group_answers, ks, majority, pass_at_k
from gvm_jax.rollout.policy import Policy
from gvm_jax.runtime import collectives
from gvm_jax.runtime.keys import run_key
from gvm_jax.runtime.mesh import describe_devices, put
from gvm_jax.training.programs import StepPrograms
from gvm_jax.training.sampler import Answer, GradedRollouts, Sampler
from gvm_jax.training.state import TrainState
from gvm_jax.training.step import StepMetrics


class Run:
    """Everything that a run is made of but its state. A context manager: its sampler owns the grader's processes.

    All that needs no device comes first, so that bad input is an error before any device work.

    Args:
      config: validated.
      check_interrupt: called between blocks of sampling; may raise to give up.
    """

    def __init__(self, config, check_interrupt: Callable[[], None] = lambda: None):
        self.config = config
        Allocator.from_config(config.allocation)  # its fields must suit the strategy
        self.sampler = sampler = Sampler(config, check_interrupt)
        self.timer, self.tokenizer, self.grader = sampler.timer, sampler.tokenizer, sampler.grader
        try:
            self.prompts = sampler.load_prompts("data", config.data.path)
            candidates = config.prompts_per_step * config.allocation.prompt_pool
            self.stream = PromptStream(self.prompts.ids, candidates, config.seed)
            held_out = config.evaluation.path
            self.held_out = sampler.load_prompts("evaluation", held_out) if held_out else None
            self.fingerprints = {"data": self.prompts.fingerprint()}  # by the config's section
            if self.held_out:
                self.fingerprints["evaluation"] = self.held_out.fingerprint()

            sampler.build()
            self.fingerprints["model"] = sampler.fingerprint
            self.mesh, self.model, self.engine = sampler.mesh, sampler.model, sampler.engine
            self._programs = StepPrograms(config, self.model, self.mesh, self.prompts.num_rows)
            self._step, self.train_step = self._programs.step, self._programs.train_step
            self.abstract_state = self._programs.abstract_state
        except BaseException:
            sampler.grader.close()
            raise

    def __enter__(self) -> "Run":
        """The run."""
        return self

    def __exit__(self, *_) -> None:
        """Ends the grader's processes."""
        self.grader.close()

    def initial_state(self) -> TrainState:
        """The state before the first step, with the weights of `model.path`."""
        return self._programs.new_state(self.sampler.load_params(), self.stream[0])

    def collect(self, state: TrainState) -> tuple[TrainState, GradedRollouts]:
        """Samples and grades the prompts of a step, in one round or in those of its allocation.

        Returns the state that the train step takes (in pilot mode statistics and counts have moved on) and the
        rollouts.
        """
        key = run_key(self.config.seed, "rollouts", int(state.step))
        temperature = self.config.rollout.temperature
        ids = np.asarray(state.prompt_ids)
        policy = self._load(state)

        def sample(state: TrainState, counts, first_sample) -> GradedRollouts:
            lengths = np.asarray(self._programs.response_length(state.statistics, ids))
            return self.sampler.sample(policy, self.prompts, ids, counts, key, temperature, first_sample, lengths)

        if self._step.pilot_samples:
            return self._pilot_round(state, sample)
        if self._step.allocator.strategy.rounds:
            return state, self._rounds(state, sample)
        return state, sample(state, np.asarray(state.counts), 0)

    def _pilot_round(
        self, state: TrainState, sample: Callable[..., GradedRollouts]
    ) -> tuple[TrainState, GradedRollouts]:
        """Pilots first, then what they allocate."""
        pilots = self._step.pilot_samples
        pilot = sample(state, np.full(len(state.prompt_ids), pilots, np.int32), 0)
        with self.timer("allocation"):
            observed, counts = self._programs.after_pilot(state, pilot.rollouts, pilot.scores)
            state = state.replace(statistics=observed, counts=counts)
            counts = np.asarray(counts)
        return state, GradedRollouts.concatenate([pilot, sample(state, counts, pilots)])

    def _rounds(self, state: TrainState, sample: Callable[..., GradedRollouts]) -> GradedRollouts:
        """Round after round until the strategy asks for no more; rows by prompt, then the padding up to the budget."""
        counts, parts = np.asarray(state.counts), []
        trials, successes = np.zeros_like(counts), np.zeros_like(counts)
        while counts.any():
            part = sample(state, counts, trials)
            parts.append(part)
            trials = trials + counts
            successes = successes + np.bincount(part.rollouts.group, part.scores > 0, len(counts)).astype(np.int32)
            with self.timer("allocation"):
                counts = np.asarray(self._programs.more_counts(Progress(successes, trials, np.int32(len(parts)))))
        graded = GradedRollouts.concatenate(parts).by_prompt()
        return dataclasses.replace(graded, rollouts=graded.rollouts.pad(self._step.budget, group=len(counts)))

    def update(
        self, state: TrainState, graded: GradedRollouts, candidates: np.ndarray
    ) -> tuple[TrainState, StepMetrics]:
        """The jitted train step; `candidates` are those of the next one. What it takes is put on the devices here.

        Any other transfer from or to the host is an error, since it would make the devices wait at every step.
        """
        batch = put((graded.rollouts, graded.rewards, candidates), replicated(self.mesh))
        with jax.transfer_guard("disallow"):
            return self.train_step(state, *batch)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Scores of k = `evaluation.samples` samples of each held-out prompt, with the same random numbers every time.

        Returns:
          "accuracy", which is avg@k; for k > 1 "pass@2", "pass@4", ... and "maj@k" too.
        """
        samples = self.config.evaluation.samples
        answers = collections.defaultdict(lambda: [None] * samples)  # of the prompts that this process samples

        def keep(answer: Answer) -> None:
            answers[answer.prompt_id][answer.sample] = answer.verdict

        graded = self.sampler.sample(
            self._load(state, "evaluation"), self.held_out, self.held_out.ids,
            np.full(len(self.held_out), samples, np.int32),
            run_key(self.config.seed, "evaluation", 0), self.config.evaluation.temperature,
            phases=("evaluation", "evaluation"), on_graded=keep,
        )  # fmt: skip
        correct = np.bincount(graded.rollouts.group, graded.scores > 0, len(self.held_out))
        passed = {f"pass@{k}": float(pass_at_k(correct, samples, k).mean()) for k in ks(samples) if k > 1}
        voted = {f"maj@{samples}": self._majority(list(answers.values()))} if samples > 1 else {}
        return {"accuracy": float(graded.scores.mean()), **passed, **voted}

    def _majority(self, verdicts: Sequence[Sequence[Verdict]]) -> float:
        """maj@k over all processes, each of which has the verdicts of whole prompts."""
        with self.timer("evaluation"):
            texts = [[verdict.answer for verdict in of_prompt] for of_prompt in verdicts]
            groups = group_answers(texts, self.grader.equivalent)
            correct = [np.array([verdict.score > 0 for verdict in of_prompt]) for of_prompt in verdicts]
            mine = np.array([majority(*pair) for pair in zip(correct, groups, strict=True)], np.float64)
            return float(collectives.gather_rows(mine).mean())

    def _load(self, state: TrainState, phase: str = "rollout") -> Policy:
        with self.timer(phase):
            return self.engine.load(state.params)


def describe_run(run: Run) -> list[str]:
    """What a person wants to know before the first step, a line each."""
    config = run.config
    parameters = sum(x.size for x in jax.tree.leaves(run.model.abstract_params))
    lines = [
        f"model     {config.model.path}: {parameters / 1e6:.1f} M parameters, computed in {run.sampler.dtype_reason}; "
        f"trained with attention {run.model.attention}",
        run.sampler.describe_tokens(),
        f"data      {config.data.path}: {len(run.prompts)} prompts; an epoch is {run.stream.steps_per_epoch} steps",
        *describe(run.prompts),
    ]
    if run.held_out:
        lines += [f"held out  {config.evaluation.path}: {len(run.held_out)} prompts", *describe(run.held_out)]
    return [
        *lines,
        f"step      {config.prompts_per_step} prompts, {config.rollouts_per_step} rollouts, "
        f"{config.optimizer.updates_per_step} updates; {config.objective.algorithm}, "
        f"allocation {config.allocation.strategy} ({config.allocation.mode})",
        f"rollouts  {run.engine.replicas} × {run.engine.settings.slots} slots, attention {run.engine.kernels}, "
        f"weights {run.engine.weight_dtype}, KV cache {run.engine.cache_bytes / 2**20:.0f} MiB",
        f"devices   {describe_devices()}; mesh " + " x ".join(f"{k} {v}" for k, v in run.mesh.shape.items()),
    ]


def describe_resume(step: int | None, changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """From where a run goes on and with what other fields than before, on one line; nothing for one that begins.

    Args:
      step: of the checkpoint; None = there is none.
      changes: (old, new) by field.
    """
    if step is None:
        return []
    said = [f"resumes   at step {step}"]
    said += [shown(name, *values) for name, values in changes.items()]
    kinds = {RULES[name].on_resume for name in changes if name in RULES}
    if OnResume.ROUNDING in kinds:
        said.append("so float results may differ in the last bits")
    return ["; ".join(said)]
