"""A policy's samples of prompts, graded: what training and evaluation share."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging
from jaxtyping import Array, Float, Int, Key

from gvm_jax.config import ConfigError
from gvm_jax.data import PromptSet, check_prompts, find_endings, load_prompts, load_tokenizer, textless_ids
from gvm_jax.models.assemble import make_model
from gvm_jax.models.config import Qwen2Config, model_folder
from gvm_jax.models.qwen2 import Params
from gvm_jax.models.sharding import param_shardings
from gvm_jax.models.weights import check_weights, fingerprint, load_params
from gvm_jax.rewards import Grader, PendingVerdict, Status, Verdict, VerifierFailure
from gvm_jax.rollout.engine import RolloutEngine
from gvm_jax.rollout.policy import Policy, SampleStats
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.rollout.settings import RolloutSettings
from gvm_jax.runtime import collectives
from gvm_jax.runtime.compilations import compilations
from gvm_jax.runtime.live import LiveLine
from gvm_jax.runtime.mesh import make_mesh
from gvm_jax.runtime.preemption import Preempted
from gvm_jax.runtime.timing import PhaseTimer
from gvm_jax.training import fingerprints

STATUSES = tuple(Status)


@dataclasses.dataclass(frozen=True)
class GradedRollouts:
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
    def concatenate(parts: "Sequence[GradedRollouts]") -> "GradedRollouts":
        """Rows of all, in order."""
        rollouts = Rollouts.concatenate([part.rollouts for part in parts])
        scores, statuses = (np.concatenate([getattr(part, name) for part in parts]) for name in ("scores", "statuses"))
        return GradedRollouts(rollouts, scores, statuses, sum((part.stats for part in parts[1:]), parts[0].stats))

    def by_prompt(self) -> "GradedRollouts":
        """Rows ordered by prompt; those of a prompt keep their order. Without padding."""
        order = np.argsort(self.rollouts.group, kind="stable")
        return GradedRollouts(self.rollouts.take(order), self.scores[order], self.statuses[order], self.stats)


@dataclasses.dataclass(frozen=True)
class GradedSample:
    """One graded sample."""

    prompt_id: int
    number: int  # among the prompt's samples
    response: Int[np.ndarray, " n"]  # its tokens
    text: str  # of the tokens before the end of turn
    verdict: Verdict


class Sampler(contextlib.AbstractContextManager):
    """The model, its rollout engine, the tokenizer and the grader of a config. Owns the grader's processes.

    All that needs no device comes first, so that bad input is an error before any device work: make it, load the
    prompts, then `build`, which makes `mesh`, `model`, `engine`, `model_summary` and the model's `fingerprint`.

    Args:
      config: validated.
      check_interrupt: called between blocks of sampling; may raise to give up.
      live: shows phases and sampled tokens.
    """

    def __init__(self, config, check_interrupt: Callable[[], None] = lambda: None, live: LiveLine | None = None):
        self.config, self.timer = config, PhaseTimer(compilations().seconds)
        self.check_interrupt, self.live = check_interrupt, live
        if live:
            self.timer.on_phase = live.phase
        folder = model_folder(config.model.path)
        self.folder, network = folder, Qwen2Config.from_folder(folder)
        self.tokenizer = load_tokenizer(str(folder))
        self.endings = find_endings(self.tokenizer, str(folder), network.vocab_size, config.rollout.stop_tokens)
        # A stop token without a text ends a response all the same.
        masked = textless_ids(self.tokenizer, network.vocab_size, kept=self.endings.stop_ids)
        self._network = dataclasses.replace(network, masked_ids=masked)
        self._settings = settings = RolloutSettings.from_config(config)
        if settings.max_tokens > self._network.max_position_embeddings:
            raise ConfigError(
                f"data.max_prompt_tokens + rollout.max_new_tokens = {settings.max_prompt_tokens} + "
                f"{settings.max_new_tokens}: must be at most {self._network.max_position_embeddings}, the "
                f"max_position_embeddings of {folder}/config.json"
            )
        self.grader = Grader(**config.rewards)
        self._warned = not self.grader.contract

    def __exit__(self, *_) -> None:
        """Ends the grader's processes."""
        self.grader.close()

    def load_prompts(self, name: str, path: str) -> PromptSet:
        """Prompts of a data set of the section `data` or `evaluation` whose references the verifier can use."""
        data = self.config.data
        prompts = load_prompts(self.config, name, path, self.tokenizer, self.grader)
        check_prompts(prompts, self.tokenizer, self._network.vocab_size, data.system_prompt, data.user_template)
        return prompts

    def build(self) -> None:
        """Makes what needs the devices; no weight is read yet, but their names and shapes are checked."""
        self.mesh = make_mesh(self.config.mesh)
        self.model, self.model_summary = make_model(self.config.model, self._network, self.mesh)
        tensors = check_weights(self.model, self.folder)
        self.fingerprint = fingerprints.of_model(self._network, self.tokenizer)
        self.fingerprint |= {"stop tokens": sorted(map(int, self.endings.stop_ids)), "weights": fingerprint(tensors)}
        self.engine = RolloutEngine(self.model, self.mesh, self._settings, self.endings.stop_ids)

    def describe_tokens(self) -> str:
        """Which tokens are sampled and which end a response, for the first lines of a run."""
        masked = sum(map(len, self._network.masked_ids))
        textless = f", {masked:,} of them without a text and never sampled" if masked else ""
        return f"tokens    {self._network.vocab_size:,} ids{textless}; {self.endings}"

    def load_params(self) -> Params:
        """The weights of `model.path`, in float32 over the mesh."""
        return load_params(self.model, self.folder, param_shardings(self.model, self.mesh))

    def sample(
        self,
        policy: Policy,
        prompts: PromptSet,
        ids: Int[np.ndarray, " m"],
        counts: Int[np.ndarray, " m"],
        key: Key[Array, ""],
        temperature: float,
        first_sample: int | Int[np.ndarray, " m"] = 0,
        expected_lengths: Float[np.ndarray, " m"] | None = None,
        phases: tuple[str, str] = ("rollout", "reward"),
        on_graded: Callable[[GradedSample], None] = lambda sample: None,
    ) -> GradedRollouts:
        """Samples prompts; each response goes to the grader while others still decode.

        Each process takes a share of the prompts; in the end all have all rows. Arguments as for `Policy.sample`, and:

        Args:
          prompts: where the ids are from.
          phases: names of sampling and of the wait for grades in `timer`.
          on_graded: called with each sample of this process as soon as it is graded.

        Raises:
          Preempted, VerifierFailure: on all processes together. What is graded by then went to `on_graded`.
        """
        work = counts if expected_lengths is None else counts * np.maximum(expected_lengths, 1.0)
        counts = np.where(collectives.share(work), counts, 0)
        grading = _Grading(self, policy, prompts, ids, counts, first_sample, on_graded)
        rollouts, verdicts, stopped = None, [], None
        try:
            with self.timer(phases[0]):
                rollouts = policy.sample(
                    [prompts.tokens[i] for i in prompts.positions_of(ids)], ids, counts, key, temperature, first_sample,
                    expected_lengths=expected_lengths,
                    on_finished=grading.submit, check_interrupt=grading.between_blocks,
                )  # fmt: skip
            with self.timer(phases[1]):
                verdicts = self.grader.collect(grading.pending, grading.between_blocks)
        except (Preempted, VerifierFailure) as error:
            stopped = error
        with self.timer(phases[1]):
            grading.deliver()
            _stop_together(stopped)
            scores = np.array([verdict.score for verdict in verdicts], np.float32)
            statuses = np.array([STATUSES.index(verdict.status) for verdict in verdicts], np.int32)
            rows = collectives.gather_rows((rollouts, scores, statuses))
            return GradedRollouts(*rows, policy.stats).by_prompt()

    def warn_of_first_error(self, sample: GradedSample, prompts: PromptSet) -> None:
        """Warns once of a user's reward function that breaks its contract."""
        if self._warned or not sample.verdict.reason:
            return
        self._warned = True
        at = prompts.positions_of(np.array(sample.prompt_id))
        reason = " ".join(sample.verdict.reason.split())
        logging.warning(
            "rewards.function failed on a sample of row %d (problem %.80a, reference %.80a): %s. %s. Such samples "
            "score 0 and count against rewards.max_failure_rate; this is told once",
            sample.prompt_id, prompts.problems[at], prompts.reference_answers[at],
            reason[:400].encode("ascii", "backslashreplace").decode(), self.grader.contract,
        )  # fmt: skip


class _Grading:
    """The samples of one call: each goes to the grader as it ends, and to `on_graded` once its verdict is there."""

    def __init__(self, sampler: Sampler, policy: Policy, prompts: PromptSet, ids, counts, first_sample, on_graded):
        self._sampler, self._policy, self._prompts, self._on_graded = sampler, policy, prompts, on_graded
        group = np.repeat(np.arange(len(ids)), counts)
        self._row_ids, self._row_positions = ids[group], prompts.positions_of(ids)[group]
        numbers = np.arange(len(group)) - (np.cumsum(counts) - counts)[group]
        self._row_numbers = numbers + np.broadcast_to(first_sample, len(ids))[group]
        self.pending: list[PendingVerdict | None] = [None] * len(group)  # by row
        self._undelivered: dict[int, tuple[np.ndarray, str]] = {}

    def submit(self, row: int, response: Int[np.ndarray, " n"]) -> None:
        text = self._sampler.endings.text(response)
        reference_answer = self._prompts.reference_answers[self._row_positions[row]]
        self.pending[row] = self._sampler.grader.submit(text, reference_answer)
        self._undelivered[row] = response.copy(), text

    def deliver(self) -> None:
        for row in [row for row in self._undelivered if self.pending[row].done()]:
            response, text = self._undelivered.pop(row)
            prompt_id, number = int(self._row_ids[row]), int(self._row_numbers[row])
            sample = GradedSample(prompt_id, number, response, text, self.pending[row].result())
            self._sampler.warn_of_first_error(sample, self._prompts)
            self._on_graded(sample)

    def between_blocks(self) -> None:
        self.deliver()
        if self._sampler.live:
            self._sampler.live.tokens(self._policy.stats.sampled_tokens)
        self._sampler.check_interrupt()


def _stop_together(error: Preempted | VerifierFailure | None) -> None:
    """Raises on all processes if one of them stops, so that none waits for it."""
    others = (
        Preempted("stopped on request, made to another process; the same command resumes the run"),
        VerifierFailure("the verifier failed on too many answers of another process; its log has one of them"),
    )
    raised = collectives.any_process(np.array([isinstance(error, type(other)) for other in others]))
    if error is not None:
        raise error
    for other, anywhere in zip(others, raised, strict=True):
        if anywhere:
            raise other
