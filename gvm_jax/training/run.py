"""The parts of a run, built from its config: data, model, rollout engine, grader and the jitted step."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from gvm_jax.allocation.allocator import Allocator
from gvm_jax.allocation.strategies import Progress
from gvm_jax.data import PromptSet, PromptStream, build_prompts, load_rows, load_tokenizer, stop_token_ids
from gvm_jax.models.config import Qwen2Config, model_folder
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.sharding import batch_sharding, param_shardings
from gvm_jax.models.weights import check_weights, load_params
from gvm_jax.rewards import MathGrader, Verdict
from gvm_jax.rollout.engine import Policy, RolloutEngine, RolloutSettings, SampleStats
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.runtime.keys import run_key
from gvm_jax.runtime.mesh import describe_devices, make_mesh, resolve_compute_dtype
from gvm_jax.runtime.timing import PhaseTimer
from gvm_jax.training.programs import StepPrograms
from gvm_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Graded:
    """Rollouts with their grades, row by row; rows beyond the verdicts are padding."""

    rollouts: Rollouts
    verdicts: list[Verdict]
    stats: SampleStats

    @property
    def scores(self) -> np.ndarray:
        """float32[samples]."""
        return np.array([verdict.score for verdict in self.verdicts], np.float32)

    @property
    def rewards(self) -> np.ndarray:
        """float32[N]: the scores, and 0 for padding."""
        return np.pad(self.scores, (0, len(self.rollouts.group) - len(self.verdicts)))


class Run:
    """Everything that a run is made of but its state. A context manager: it owns the grader's processes.

    All that needs no device comes first, so that bad input is an error before any device work.

    Args:
      config: validated.
      check_interrupt: called between blocks of sampling; may raise to give up.
    """

    def __init__(self, config, check_interrupt: Callable[[], None] = lambda: None):
        self.config, self.timer, self._check_interrupt = config, PhaseTimer(), check_interrupt
        folder = model_folder(config.model.path)
        network = Qwen2Config.from_folder(folder)
        self._folder = folder
        self.tokenizer = load_tokenizer(str(folder))
        stop_ids = stop_token_ids(self.tokenizer, str(folder), config.rollout.stop_tokens)
        settings = RolloutSettings.from_config(config)
        Allocator.from_config(config.allocation)  # its fields must suit the strategy
        rewards = config.rewards
        self.grader = MathGrader(rewards.workers, rewards.deadline_seconds, rewards.max_failure_rate)
        try:
            self.prompts = self._load_prompts("data")
            candidates = config.prompts_per_step * config.allocation.prompt_pool
            self.stream = PromptStream(self.prompts.ids, candidates, config.seed)
            self.held_out = self._load_prompts("evaluation") if config.evaluation.path else None

            self.mesh = make_mesh(config.mesh)
            dtype, self.dtype_reason = resolve_compute_dtype(config.model.compute_dtype)
            self.model = Model(network, dtype, config.model.remat, rows=batch_sharding(self.mesh))
            check_weights(self.model, folder)
            self.engine = RolloutEngine(self.model, self.mesh, settings, stop_ids)
            self._programs = StepPrograms(config, self.model, self.mesh, self.prompts.num_rows)
            self._step, self.train_step = self._programs.step, self._programs.train_step
            self.abstract_state = self._programs.abstract_state
        except BaseException:
            self.grader.close()
            raise

    def __enter__(self) -> "Run":
        """The run."""
        return self

    def __exit__(self, *_) -> None:
        """Ends the grader's processes."""
        self.grader.close()

    def _load_prompts(self, name: str) -> PromptSet:
        """Prompts of the section `data` or `evaluation`; columns and templates are those of `data` for both."""
        section, data = self.config[name], self.config.data
        rows = load_rows(
            section.path, section.subset, section.split, data.problem_column, data.answer_column, data.answer_after,
            section=name,
        )  # fmt: skip
        rows = rows[: section.get("prompts", len(rows))]
        prompts = build_prompts(rows, self.tokenizer, data.system_prompt, data.user_template, data.max_prompt_tokens)
        return prompts.drop(~self.grader.parses(prompts.golds), "reference answer that the verifier cannot read")

    def initial_state(self) -> TrainState:
        """The state before the first step, with the weights of `model.path`."""
        params = load_params(self.model, self._folder, param_shardings(self.model, self.mesh))
        return self._programs.new_state(params, self.stream[0])

    def collect(self, state: TrainState) -> tuple[TrainState, Graded]:
        """Samples and grades the prompts of a step, in one round or in those of its allocation.

        Returns the state that the train step takes (in pilot mode statistics and counts have moved on) and the
        rollouts.
        """
        key = run_key(self.config.seed, "rollouts", int(state.step))
        temperature = self.config.rollout.temperature
        ids = np.asarray(state.prompt_ids)
        policy = self._load(state)

        def sample(state: TrainState, counts, first_sample) -> Graded:
            lengths = np.asarray(self._programs.response_length(state.statistics, ids))
            return self._sample(policy, self.prompts, ids, counts, key, temperature, first_sample, lengths)

        if self._step.pilot_samples:
            return self._pilot_round(state, sample)
        if self._step.allocator.strategy.rounds:
            return state, self._rounds(state, sample)
        return state, sample(state, np.asarray(state.counts), 0)

    def _pilot_round(self, state: TrainState, sample: Callable[..., Graded]) -> tuple[TrainState, Graded]:
        """Pilots first, then what they allocate."""
        pilots = self._step.pilot_samples
        pilot = sample(state, np.full(len(state.prompt_ids), pilots, np.int32), 0)
        with self.timer("allocation"):
            observed, counts = self._programs.after_pilot(state, pilot.rollouts, pilot.scores)
            state = state.replace(statistics=observed, counts=counts)
            counts = np.asarray(counts)
        fresh = sample(state, counts, pilots)
        rollouts = Rollouts.concatenate([pilot.rollouts, fresh.rollouts])
        return state, Graded(rollouts, pilot.verdicts + fresh.verdicts, pilot.stats + fresh.stats)

    def _rounds(self, state: TrainState, sample: Callable[..., Graded]) -> Graded:
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
        rollouts = Rollouts.concatenate([part.rollouts for part in parts])
        verdicts = [verdict for part in parts for verdict in part.verdicts]
        order = np.argsort(rollouts.group, kind="stable")
        rollouts = rollouts.take(order).pad(self._step.budget, group=len(counts))
        return Graded(rollouts, [verdicts[i] for i in order], sum((part.stats for part in parts[1:]), parts[0].stats))

    def evaluate(self, state: TrainState) -> float:
        """Accuracy of one sample for each held-out prompt, drawn with the same random numbers every time."""
        key = run_key(self.config.seed, "evaluation", 0)
        every = np.ones(len(self.held_out), np.int32)
        temperature = self.config.evaluation.temperature
        graded = self._sample(
            self._load(state, "evaluation"),
            self.held_out,
            self.held_out.ids,
            every,
            key,
            temperature,
            0,
            phases=("evaluation", "evaluation"),
        )
        return float(graded.scores.mean())

    def _load(self, state: TrainState, phase: str = "rollout") -> Policy:
        with self.timer(phase):
            return self.engine.load(state.params)

    def _sample(
        self,
        policy: Policy,
        prompts: PromptSet,
        ids,
        counts,
        key,
        temperature,
        first_sample,
        expected_lengths=None,
        phases=("rollout", "reward"),
    ) -> Graded:
        """Samples prompts; each response goes to the grader while others still decode."""
        positions = prompts.positions_of(ids)
        gold_of_row = np.repeat(positions, counts)
        pending = [None] * len(gold_of_row)

        def submit(row: int, response: np.ndarray) -> None:
            text = self.tokenizer.decode(response, skip_special_tokens=True)
            pending[row] = self.grader.submit(text, prompts.golds[gold_of_row[row]])

        with self.timer(phases[0]):
            rollouts = policy.sample(
                [prompts.tokens[i] for i in positions], ids, counts, key, temperature, first_sample,
                expected_lengths=expected_lengths,
                on_finished=submit, check_interrupt=self._check_interrupt,
            )  # fmt: skip
        stats = self.engine.stats
        with self.timer(phases[1]):
            return Graded(rollouts, self.grader.collect(pending), stats)


def describe_run(run: Run) -> list[str]:
    """What a person wants to know before the first step, a line each."""
    config = run.config
    parameters = sum(x.size for x in jax.tree.leaves(run.model.abstract_params))
    lines = [
        f"model     {config.model.path}: {parameters / 1e6:.1f} M parameters, computed in {run.dtype_reason}",
        f"data      {_describe(config.data.path, run.prompts)}; an epoch is {run.stream.steps_per_epoch} steps",
    ]
    if run.held_out:
        lines.append(f"held out  {_describe(config.evaluation.path, run.held_out)}")
    return [
        *lines,
        f"step      {config.prompts_per_step} prompts, {config.rollouts_per_step} rollouts, "
        f"{config.optimizer.updates_per_step} updates; {config.objective.algorithm}, "
        f"allocation {config.allocation.strategy} ({config.allocation.mode})",
        f"rollouts  {run.engine.settings.slots} slots, attention {run.engine.kernels}, "
        f"weights {run.engine.weight_dtype}, KV cache {run.engine.cache_bytes / 2**20:.0f} MiB",
        f"devices   {describe_devices()}; mesh " + " x ".join(f"{k} {v}" for k, v in run.mesh.shape.items()),
    ]


def _describe(path: str, prompts: PromptSet) -> str:
    dropped = "".join(f"; dropped {rows}: {reason}" for reason, rows in prompts.dropped.items())
    return f"{path}: {len(prompts)} prompts{dropped}"
