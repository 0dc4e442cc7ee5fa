"""The record of a run: what it has cost so far and the metrics of each step, the same fields for every strategy."""

import collections
import dataclasses
import io
import pathlib
import warnings

import numpy as np
import psutil
from absl import logging

from gvm_jax.allocation.diagnostics import Diagnostics, advice
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.runtime.about import memory_metrics
from gvm_jax.runtime.files import write_atomically
from gvm_jax.runtime.metrics import MetricsWriter, read_rows
from gvm_jax.runtime.progress import ProgressPrinter
from gvm_jax.runtime.tracking import Tracker
from gvm_jax.training.sampler import STATUSES, GradedRollouts
from gvm_jax.training.samples import SampleTexts
from gvm_jax.training.step import StepMetrics

ADVICE_STEPS = 10  # steps whose diagnostics are looked at together
MAX_TRUNCATED = 0.2  # share of cut responses above which their zero rewards are worth a warning


@dataclasses.dataclass
class Totals:
    """Cumulative since the first step; in every line of the metrics and in every checkpoint."""

    steps: int = 0
    prompts: int = 0  # prompts sampled, counted at each visit
    rollouts: int = 0  # pilots included, evaluation not
    sampled_tokens: int = 0  # response tokens of these rollouts
    trained_tokens: int = 0  # response tokens that had a gradient
    updates: int = 0  # optimizer updates that were applied
    skipped_updates: int = 0  # and those that were not, since their loss or gradient was not finite
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # by phase

    def add(self, graded: GradedRollouts, metrics: StepMetrics, updates: int, seconds: dict[str, float]) -> None:
        """Add one step."""
        self.steps += 1
        self.prompts += int((metrics.counts > 0).sum())
        self.rollouts += len(graded.scores)
        self.sampled_tokens += int(graded.rollouts.response_lengths.sum())
        self.trained_tokens += int(metrics.trained_tokens)
        self.updates += updates - int(metrics.skipped_updates)
        self.skipped_updates += int(metrics.skipped_updates)
        self.add_seconds(seconds)

    def add_seconds(self, seconds: dict[str, float]) -> None:
        """Add the time of some phases."""
        for phase, spent in seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + spent

    def scalars(self) -> dict[str, float]:
        """As metrics, `total/...`."""
        fields = dataclasses.asdict(self)
        by_phase = {f"total/seconds/{phase}": spent for phase, spent in fields.pop("seconds").items()}
        total = {"total/seconds": sum(self.seconds.values())}
        return {f"total/{name}": value for name, value in fields.items()} | total | by_phase


def step_scalars(graded: GradedRollouts, metrics: StepMetrics, seconds: dict[str, float]) -> dict[str, float]:
    """The metrics of one step (host arrays), without the totals."""
    rollouts, info, drawn = graded.rollouts, metrics.allocation, len(graded.scores)
    diagnostics = {field.name: getattr(metrics.diagnostics, field.name) for field in dataclasses.fields(Diagnostics)}
    corrected = {} if metrics.truncated_weights is None else {"train/truncated_weights": metrics.truncated_weights}
    return {
        "reward/mean": graded.scores.mean(),
        "reward/accept_rate": (graded.scores > 0).mean(),
        **{f"reward/{status.value}": (graded.statuses == i).mean() for i, status in enumerate(STATUSES)},
        "rollout/response_tokens": rollouts.response_lengths[:drawn].mean(),
        "rollout/truncated": 1.0 - rollouts.stopped[:drawn].mean(),
        "rollout/logprob_mismatch": metrics.mismatch,
        "rollout/logprob_mismatch_max": metrics.max_mismatch,
        "rollout/preemptions": graded.stats.preemptions,
        "train/loss": metrics.loss,
        "train/gradient_norm": metrics.gradient_norm,
        "train/skipped_updates": metrics.skipped_updates,
        "train/clip_fraction": metrics.clip_fraction,
        "train/entropy": metrics.entropy,
        "train/packing_efficiency": metrics.packing_efficiency,
        **corrected,
        "train/kl": metrics.kl,
        "allocation/min_count": metrics.counts.min(),
        "allocation/max_count": metrics.counts.max(),
        # Of all prompts of the step, those without samples too.
        "allocation/prompts_without_accepted": 1.0 - (metrics.prompt_accept_rate > 0).mean(),
        "allocation/measured_norms": metrics.measured_norms,
        "allocation/variance_ratio": info.variance_ratio,
        "allocation/ideal_variance_ratio": info.ideal_variance_ratio,
        **{f"allocation/{name}": value for name, value in diagnostics.items()},
        **{f"seconds/{phase}": spent for phase, spent in seconds.items()},
        # Parts of the rollouts' seconds.
        "seconds/rollout_prefill": graded.stats.prefill_seconds,
        "seconds/rollout_idle": graded.stats.idle_seconds,
        "host/resident_bytes": psutil.Process().memory_info().rss,
        **memory_metrics(),
    }


def allocation_columns(prompt_ids: np.ndarray, metrics: StepMetrics) -> dict[str, np.ndarray]:
    """A row for each prompt of the step: what was believed of it, what it got, what came of it."""
    return {
        "prompt_id": prompt_ids,
        "count": metrics.counts,
        "believed_accept_rate": metrics.allocation.accept_rate,
        "believed_gradient_norm": metrics.allocation.gradient_norm,
        "accept_rate": metrics.prompt_accept_rate,
    }


class Journal:
    """Writes `metrics.jsonl`, `evaluation.jsonl`, `allocation.jsonl` and `samples.jsonl`, and prints a line a step.

    Args:
      workdir: folder of the run.
      progress: prints a line a step.
      totals: where the run stands; changed in place.
      max_skipped: updates left out in a row at which `step` raises.
      resume_step: the checkpoint that the run goes on from; None = from the start.
      active: False on all processes but the first.
      tracker: gets every step and evaluation too.
      samples: makes the rows of `samples.jsonl`; None or a limit of 0 = there are none.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        progress: ProgressPrinter,
        totals: Totals,
        max_skipped: int,
        resume_step: int | None,
        active: bool,
        tracker: Tracker | None = None,
        samples: SampleTexts | None = None,
    ):
        self.totals = totals
        self._workdir, self._max_skipped, self._active = workdir, max_skipped, active
        self._writer = MetricsWriter(workdir, resume_step, active, tables=("evaluation", "allocation", "samples"))
        self._samples = samples if samples and samples.limit and active else None
        self._tracker = tracker
        self._progress = progress
        self._line: dict[str, float] = {}
        self._seconds: dict[str, float] = {}  # of the last step, by phase
        self._warned = False
        self._recent: collections.deque[Diagnostics] = collections.deque(maxlen=ADVICE_STEPS)
        self.accuracy: dict[int, float] = {}  # held out, by step
        if resume_step is not None and (workdir / "evaluation.jsonl").exists():
            rows = read_rows(workdir, "evaluation")
            rows = [row for row in rows if row["step"] <= resume_step]
            self.accuracy = {row["step"]: row["accuracy"] for row in rows}
            if rows:  # a checkpoint is older than the evaluation of its step
                recorded = rows[-1]["total/seconds/evaluation"]
                totals.seconds["evaluation"] = max(recorded, totals.seconds.get("evaluation", 0.0))
        self._tell_of_losses(resume_step or 0)

    def _tell_of_losses(self, done: int) -> None:
        """Warn where the record that was found does not end with the steps that are done."""
        if not self._active:
            return
        for table in ("metrics", "allocation"):
            last = self._writer.last_step(table)
            if last < done:
                logging.warning(
                    "%s/%s.jsonl: the lines of steps %d to %d are missing; the totals go on from the checkpoint's",
                    self._workdir, table, last + 1, done,
                )  # fmt: skip
        if "evaluation" in self.totals.seconds and not self.accuracy:
            logging.warning(
                "%s/evaluation.jsonl: the evaluations so far are missing; checkpoint.keep_best goes by later ones",
                self._workdir,
            )
        if self._writer.dropped and not done:
            logging.warning(
                "%s: an earlier run ended at step %d before it had saved a checkpoint; this one begins again",
                self._workdir, self._writer.dropped,
            )  # fmt: skip

    def close(self) -> None:
        """Close the files."""
        self._writer.close()

    def evaluated(self, step: int) -> bool:
        """Whether the policy after `step` steps has been evaluated, before an interruption too."""
        return step in self.accuracy

    def evaluation(self, step: int, scores: dict[str, float], seconds: dict[str, float]) -> None:
        """Record held-out scores, "accuracy" among them."""
        self.totals.add_seconds(seconds)
        self.accuracy[step] = scores["accuracy"]
        self._write(step, {**scores, **self.totals.scalars()}, table="evaluation")

    def step(
        self,
        prompt_ids: np.ndarray,
        graded: GradedRollouts,
        metrics: StepMetrics,
        updates: int,
        seconds: dict[str, float],
    ) -> None:
        """Record a step that was trained.

        Raises:
          FloatingPointError: too many updates in a row were not finite; the step is recorded and its batch kept.
        """
        self.totals.add(graded, metrics, updates, seconds)
        self._line, self._seconds = step_scalars(graded, metrics, seconds), seconds
        step = self.totals.steps
        self._write(step, {**self._line, **self.totals.scalars()})
        self._writer.write_rows("allocation", step, allocation_columns(prompt_ids, metrics))
        if self._samples is not None:
            self._writer.write_rows("samples", step, self._samples.columns(prompt_ids, graded))
        if self._line["rollout/truncated"] > MAX_TRUNCATED and not self._warned:
            self._warned = True
            logging.warning(
                "step %d: %.0f %% of the responses were cut at rollout.max_new_tokens and score 0; raise it if they "
                "are not mere rambling", step, 100 * self._line["rollout/truncated"],
            )  # fmt: skip
        self._advise(step, metrics.diagnostics)
        if metrics.skipped_updates:
            self._warn_of_skipped(step, prompt_ids, graded, metrics)

    def _write(self, step: int, scalars: dict[str, float], table: str = "metrics") -> None:
        self._writer.write(step, scalars, table)
        if self._tracker is not None:
            self._tracker.write(step, scalars, table)

    def _warn_of_skipped(self, step: int, prompt_ids: np.ndarray, graded: GradedRollouts, metrics: StepMetrics) -> None:
        problem = (
            f"step {step}: {int(metrics.skipped_updates)} updates were left out, since their loss or gradient was not "
            f"finite (means: {float(metrics.loss)}, {float(metrics.gradient_norm)}); {int(metrics.skipped_in_a_row)} "
            "in a row by now"
        )
        if metrics.skipped_in_a_row < self._max_skipped:
            logging.warning("%s; the run stops at %d", problem, self._max_skipped)
            return
        kept = ""
        if self._active:
            path = save_batch(self._workdir, step, prompt_ids, graded.rollouts, graded.rewards)
            kept = f" Its batch is kept in {path.relative_to(self._workdir)} of the workdir."
        raise FloatingPointError(
            f"{problem}, optimizer.max_skipped_updates = {self._max_skipped}.{kept} The parameters are those of the "
            "last finite update. Lower optimizer.learning_rate, or compute in float32 (model.compute_dtype)"
        )

    def _advise(self, step: int, diagnostics: Diagnostics) -> None:
        """Warn, at most once in `ADVICE_STEPS` steps, of counts that do worse than equal ones."""
        self._recent.append(diagnostics)
        if len(self._recent) < ADVICE_STEPS:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a mean of nothing is NaN
            means = {
                field.name: float(np.nanmean([getattr(d, field.name) for d in self._recent]))
                for field in dataclasses.fields(Diagnostics)
            }
        if warning := advice(means):
            logging.warning("steps %d to %d: %s", step - ADVICE_STEPS + 1, step, warning)
            self._recent.clear()

    def show(self) -> None:
        """Print the line of the step that was done last."""
        line, totals = self._line, self.totals
        self._progress.step(
            totals.steps,
            reward=line.get("reward/mean"),
            accept_rate=line.get("reward/accept_rate"),
            held_out_accuracy=self.accuracy.get(totals.steps),
            rollouts=totals.rollouts,
            tokens=totals.sampled_tokens,
            updates=totals.updates,
            seconds=sum(spent for phase, spent in self._seconds.items() if phase != "compile"),
            compile_seconds=self._seconds.get("compile", 0.0),
        )


def save_batch(
    workdir: pathlib.Path, step: int, prompt_ids: np.ndarray, rollouts: Rollouts, rewards: np.ndarray
) -> pathlib.Path:
    """Writes a step's batch to `skipped/step-N.npz`: the fields of Rollouts by name, rewards and prompt ids.

    Args:
      workdir: folder of the run.
      step: number of the step.
      prompt_ids: int32[m]; `rollouts.group` indexes it.
      rollouts: numpy arrays.
      rewards: float32[N].

    Returns:
      The file.
    """
    path, file = workdir / "skipped" / f"step-{step}.npz", io.BytesIO()
    np.savez_compressed(file, prompt_ids=prompt_ids, rewards=rewards, **vars(rollouts))
    write_atomically(path, file.getvalue())
    return path
