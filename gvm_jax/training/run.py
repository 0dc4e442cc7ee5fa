"""The parts of a run, built from its config: data, model, rollout engine, grader and the jitted step."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

from gvm_jax.allocation.allocator import Allocator
from gvm_jax.allocation.strategies import Progress
from gvm_jax.config import ConfigError
from gvm_jax.data import PromptSet, PromptStream, build_prompts, load_rows, load_tokenizer, stop_token_ids
from gvm_jax.models.config import Qwen2Config, model_folder
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.sharding import batch_sharding, param_shardings, replicated
from gvm_jax.models.weights import check_weights, load_params
from gvm_jax.rewards import MathGrader, Status, VerifierFailure
from gvm_jax.rollout.engine import RolloutEngine
from gvm_jax.rollout.policy import Policy, SampleStats
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.rollout.settings import RolloutSettings
from gvm_jax.runtime import processes
from gvm_jax.runtime.keys import run_key
from gvm_jax.runtime.mesh import describe_devices, make_mesh, put, resolve_compute_dtype
from gvm_jax.runtime.preemption import Preempted
from gvm_jax.runtime.timing import PhaseTimer
from gvm_jax.training.programs import StepPrograms
from gvm_jax.training.state import TrainState
from gvm_jax.training.step import StepMetrics

STATUSES = tuple(Status)


@dataclasses.dataclass(frozen=True)
class Graded:
    """Rollouts of all processes with their grades, row by row; rows beyond the scores are padding."""

    rollouts: Rollouts
    scores: Float[np.ndarray, " samples"]
    statuses: Int[np.ndarray, " samples"]  # places in `STATUSES`
    stats: SampleStats  # of this process's part

    @property
    def rewards(self) -> Float[np.ndarray, " N"]:
        """The scores, and 0 for padding."""
        return np.pad(self.scores, (0, len(self.rollouts.group) - len(self.scores)))

    @staticmethod
    def concatenate(parts: "Sequence[Graded]") -> "Graded":
        """Rows of all, in order."""
        rollouts = Rollouts.concatenate([part.rollouts for part in parts])
        scores, statuses = (np.concatenate([getattr(part, name) for part in parts]) for name in ("scores", "statuses"))
        return Graded(rollouts, scores, statuses, sum((part.stats for part in parts[1:]), parts[0].stats))

    def by_prompt(self) -> "Graded":
        """Rows ordered by prompt; those of a prompt keep their order. Without padding."""
        order = np.argsort(self.rollouts.group, kind="stable")
        return Graded(self.rollouts.take(order), self.scores[order], self.statuses[order], self.stats)


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
        if settings.max_tokens > network.max_position_embeddings:
            raise ConfigError(
                f"data.max_prompt_tokens + rollout.max_new_tokens = {settings.max_prompt_tokens} + "
                f"{settings.max_new_tokens}: must be at most {network.max_position_embeddings}, the "
                f"max_position_embeddings of {folder}/config.json"
            )
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
        return state, Graded.concatenate([pilot, sample(state, counts, pilots)])

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
        graded = Graded.concatenate(parts).by_prompt()
        return dataclasses.replace(graded, rollouts=graded.rollouts.pad(self._step.budget, group=len(counts)))

    def update(self, state: TrainState, graded: Graded, candidates: np.ndarray) -> tuple[TrainState, StepMetrics]:
        """The jitted train step; `candidates` are those of the next one. What it takes is put on the devices here.

        Any other transfer from or to the host is an error, since it would make the devices wait at every step.
        """
        batch = put((graded.rollouts, graded.rewards, candidates), replicated(self.mesh))
        with jax.transfer_guard("disallow"):
            return self.train_step(state, *batch)

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
        """Samples prompts; each response goes to the grader while others still decode.

        Each process takes a share of the prompts; in the end all have all rows.
        """
        work = counts if expected_lengths is None else counts * np.maximum(expected_lengths, 1.0)
        counts = np.where(processes.share(work), counts, 0)
        positions = prompts.positions_of(ids)
        gold_of_row = np.repeat(positions, counts)
        pending = [None] * len(gold_of_row)
        rollouts, verdicts, stopped = None, [], None

        def submit(row: int, response: np.ndarray) -> None:
            text = self.tokenizer.decode(response, skip_special_tokens=True)
            pending[row] = self.grader.submit(text, prompts.golds[gold_of_row[row]])

        try:
            with self.timer(phases[0]):
                rollouts = policy.sample(
                    [prompts.tokens[i] for i in positions], ids, counts, key, temperature, first_sample,
                    expected_lengths=expected_lengths,
                    on_finished=submit, check_interrupt=self._check_interrupt,
                )  # fmt: skip
            with self.timer(phases[1]):
                verdicts = self.grader.collect(pending, self._check_interrupt)
        except (Preempted, VerifierFailure) as error:
            stopped = error
        with self.timer(phases[1]):
            _stop_together(stopped)
            scores = np.array([verdict.score for verdict in verdicts], np.float32)
            statuses = np.array([STATUSES.index(verdict.status) for verdict in verdicts], np.int32)
            rows = processes.gather_rows((rollouts, scores, statuses))
            return Graded(*rows, policy.stats).by_prompt()


def _stop_together(error: Preempted | VerifierFailure | None) -> None:
    """Raises on all processes if one of them stops, so that none waits for it."""
    others = (
        Preempted("stopped on request, made to another process; the same command resumes the run"),
        VerifierFailure("the verifier failed on too many answers of another process; its log has one of them"),
    )
    raised = processes.any_process(np.array([isinstance(error, type(other)) for other in others]))
    if error is not None:
        raise error
    for other, anywhere in zip(others, raised, strict=True):
        if anywhere:
            raise other


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
        f"rollouts  {run.engine.replicas} × {run.engine.settings.slots} slots, attention {run.engine.kernels}, "
        f"weights {run.engine.weight_dtype}, KV cache {run.engine.cache_bytes / 2**20:.0f} MiB",
        f"devices   {describe_devices()}; mesh " + " x ".join(f"{k} {v}" for k, v in run.mesh.shape.items()),
    ]


def _describe(path: str, prompts: PromptSet) -> str:
    dropped = "".join(f"; dropped {rows}: {reason}" for reason, rows in prompts.dropped.items())
    return f"{path}: {len(prompts)} prompts{dropped}"
