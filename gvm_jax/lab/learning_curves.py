"""Learning curves of the runs of several variants: intervals over seeds, differences, costs to a target accuracy.

A variant is trained once with each seed. A seed gives all variants the same order of prompts and the same random
numbers for samples and evaluation, so they are compared seed by seed. An interval is Student's for a mean of n values,

    mean ± t(0.975, n − 1) · s / √n,    s with n − 1,

of accuracies, of their differences seed by seed, or of the logarithms of cost ratios. It is about other seeds of this
setting, not about other held-out problems, and is not corrected for the number of variants.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtrit

from gvm_jax.runtime.metrics import read_rows

COSTS = ("rollouts", "tokens", "updates", "seconds")
GAIN_TO_REACH = 0.9  # share of the baseline's gain that the default target asks for


@dataclasses.dataclass(frozen=True)
class Curve:
    """Held-out accuracy of one run, and the cost of the run by the time of each evaluation."""

    steps: Int[np.ndarray, " E"]
    accuracy: Float[np.ndarray, " E"]  # the last one is after the last step
    costs: dict[str, Float[np.ndarray, " E"]]  # by name of COSTS, from 0

    @property
    def final(self) -> float:
        return float(self.accuracy[-1])

    @property
    def mean(self) -> float:
        """Mean accuracy over training: the area under the curve against rollouts (trapezoids) by its width."""
        rollouts = self.costs["rollouts"]
        return float(np.trapezoid(self.accuracy, rollouts) / (rollouts[-1] - rollouts[0]))

    def cost_to_reach(self, target: float, name: str) -> float | None:
        """Cost where the accuracy first is `target`, linear between evaluations; None = it never is."""
        reached = np.flatnonzero(self.accuracy >= target)
        if not reached.size:
            return None
        end, cost = reached[0], self.costs[name]
        if end == 0:
            return float(cost[0])
        share = (target - self.accuracy[end - 1]) / (self.accuracy[end] - self.accuracy[end - 1])
        return float(cost[end - 1] + share * (cost[end] - cost[end - 1]))


def read_curve(run: pathlib.Path, free_pilots: int = 0) -> Curve:
    """The curve of a run's folder.

    Seconds are those of training: without evaluation, and without the first step's excess over the median of the later
    ones, which is compilation. (A resumed run compiles again, and that stays in.)

    Args:
      run: folder of the run.
      free_pilots: rollouts of each step that are not counted as rollouts; their tokens and seconds are.

    Raises:
      FileNotFoundError, ValueError: its record is not there, or is broken.
    """
    rows, steps = read_rows(run, "evaluation"), read_rows(run, "metrics")

    def column(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows], float)

    def seconds(of: list[dict]) -> np.ndarray:
        return np.array([row["total/seconds"] - row.get("total/seconds/evaluation", 0.0) for row in of], float)

    number = column("step").astype(int)
    of_step = np.diff(seconds(steps), prepend=0.0)
    compilation = max(0.0, of_step[0] - np.median(of_step[1:])) if len(of_step) > 1 else 0.0
    costs = {
        "rollouts": column("total/rollouts") - free_pilots * number,
        "tokens": column("total/sampled_tokens"),
        "updates": column("total/updates"),
        "seconds": seconds(rows) - compilation * (number > 0),
    }
    return Curve(number, column("accuracy"), costs)


def steps_done(run: pathlib.Path) -> int:
    """Steps of a run that is complete so far: trained, evaluated and saved; 0 = none, or it was stopped in between."""
    try:
        last = [read_rows(run, table)[-1]["step"] for table in ("metrics", "evaluation")]
    except (FileNotFoundError, IndexError):
        return 0
    saved = (run / "checkpoints" / str(last[0])).is_dir()  # Orbax gives a folder its name once it is whole
    return last[0] if saved and last[0] == last[1] else 0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval; `low` and `high` are None for one seed."""

    mean: float
    low: float | None
    high: float | None
    by_seed: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Student's interval for the mean of at least one value; see the module's docstring."""
        values = [float(value) for value in values]
        mean, n = float(np.mean(values)), len(values)
        if n == 1:
            return cls(mean, None, None, values)
        half = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(n))
        return cls(mean, mean - half, mean + half, values)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A variant's cost to the target over its baseline's: geometric mean over the seeds.

    A run that does not reach the target enters with its whole cost, which is less than it would need. If only the
    variant has such runs the ratio is a lower bound, `sign` "≥", if only the baseline has, an upper one, "≤"; bounds
    have no interval.
    """

    mean: float
    low: float | None
    high: float | None
    sign: str = ""

    @classmethod
    def of(cls, curves: Sequence[Curve], baselines: Sequence[Curve], target: float, name: str) -> "Ratio | None":
        """From runs with the same seeds; None where both have runs that do not get there, or one starts there."""
        reached = [[curve.cost_to_reach(target, name) for curve in side] for side in (curves, baselines)]
        missed = [None in side for side in reached]
        needed = [
            [curve.costs[name][-1] if cost is None else cost for curve, cost in zip(side, costs, strict=True)]
            for side, costs in zip((curves, baselines), reached, strict=True)
        ]
        if all(missed) or min(map(min, needed)) <= 0:
            return None
        logs = Estimate.of(np.log(needed[0]) - np.log(needed[1]))
        if any(missed):
            return cls(math.exp(logs.mean), None, None, "≥" if missed[0] else "≤")
        bounds = [None if bound is None else math.exp(bound) for bound in (logs.low, logs.high)]
        return cls(math.exp(logs.mean), *bounds)


@dataclasses.dataclass(frozen=True)
class Summary:
    """Accuracy and cost of the runs of one variant."""

    label: str
    baseline: str | None
    final: Estimate
    mean: Estimate  # over training
    final_difference: Estimate | None  # variant less baseline, seed by seed; None for a baseline
    mean_difference: Estimate | None
    total: dict[str, float]  # cost of the whole training, mean over seeds
    cost_to_target: dict[str, list[float | None]]  # a value a seed, None = not reached; empty without a target
    ratio_to_target: dict[str, Ratio | None]  # empty for a baseline


def summarize(
    curves: Mapping[str, Sequence[Curve]], baseline_of: Mapping[str, str | None], target: float | None
) -> list[Summary]:
    """A summary of each variant.

    Args:
      curves: label -> a curve a seed, the same seeds in the same order for all.
      baseline_of: label -> label of the variant that it is compared with; None = a baseline.
      target: accuracy whose cost is asked for; None = none.
    """
    asked = COSTS if target is not None else ()

    def summary(label: str) -> Summary:
        own, baseline = curves[label], baseline_of[label]
        base = curves[baseline] if baseline else None

        def difference(name: str) -> Estimate | None:
            pairs = zip(own, base, strict=True) if base else ()
            return Estimate.of([getattr(a, name) - getattr(b, name) for a, b in pairs]) if base else None

        return Summary(
            label=label,
            baseline=baseline,
            final=Estimate.of([curve.final for curve in own]),
            mean=Estimate.of([curve.mean for curve in own]),
            final_difference=difference("final"),
            mean_difference=difference("mean"),
            total={name: float(np.mean([curve.costs[name][-1] for curve in own])) for name in COSTS},
            cost_to_target={name: [curve.cost_to_reach(target, name) for curve in own] for name in asked},
            ratio_to_target={name: Ratio.of(own, base, target, name) for name in asked} if base else {},
        )

    return [summary(label) for label in curves]


def default_target(baselines: Sequence[Curve]) -> float | None:
    """The accuracy at which a baseline has made `GAIN_TO_REACH` of its gain; None if it gains nothing.

    Of mean accuracies over the seeds, before the first and after the last step. It is not the last accuracy itself,
    which a curve that has flattened out meets anywhere, by luck.
    """
    first = float(np.mean([curve.accuracy[0] for curve in baselines]))
    gain = float(np.mean([curve.final for curve in baselines])) - first
    return first + GAIN_TO_REACH * gain if gain > 0 else None
