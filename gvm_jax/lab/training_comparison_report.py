"""A comparison of trained variants as tables and JSON."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from gvm_jax.lab import tables
from gvm_jax.lab.learning_curves import COSTS, Curve, Estimate, Ratio, Summary, default_target, summarize
from gvm_jax.lab.variants import Variant

NOTES = """\
- Intervals: 95 %, Student's t over the seeds; none for one seed. Differences and ratios are taken seed by seed, ratios
  as logarithms. They are about other seeds, not about other held-out problems or about the number of rows.
- Mean accuracy: over training, the area under the curve of held-out accuracy against rollouts.
- Cost to the target: where a run's accuracy first is that high, linear between evaluations. A run that never is enters
  a ratio with its whole cost, so the ratio is only a bound (≥ or ≤); "?" = not even that.
- Rollouts and sampled tokens include pilots. Seconds leave evaluation and the first step's compilation out; a run that
  was stopped compiles again where it goes on, and that is in its seconds."""
_FREE_PILOTS_NOTE = "\n- Confound `pilots`: these rollouts are not counted as rollouts; their tokens and seconds are."


def write(
    workdir: pathlib.Path,
    title: str,
    variants: Sequence[Variant],
    curves: Mapping[str, Sequence[Curve]],
    seeds: Sequence[int],
    target: float | None,
) -> str:
    """Write comparison.md and comparison.json; returns the tables as text.

    Args:
      workdir: folder of the comparison.
      title: for headings.
      variants: all, baselines first.
      curves: label -> a curve for each of `seeds`.
      seeds: those that every variant has finished.
      target: held-out accuracy whose cost is compared; None = `default_target` of the first variant.
    """
    asked = target if target is not None else default_target(curves[variants[0].label])
    summaries = summarize(curves, {variant.label: variant.baseline for variant in variants}, asked)
    results = "\n\n".join(
        [accuracy_table(summaries, len(seeds)), target_table(summaries, asked, variants[0].label, target is None)]
    )
    settings = [[v.label, ", ".join(f"{name}={value}" for name, value in v.overrides.items())] for v in variants]
    sections = [
        f"# {title}",
        results,
        tables.markdown([["variant", "sets"], *settings]),
        f"Seeds: {', '.join(map(str, seeds))}.",
        NOTES + (_FREE_PILOTS_NOTE if any(variant.free_pilots for variant in variants) else ""),
    ]
    (workdir / "comparison.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    result = {
        "title": title,
        "seeds": list(seeds),
        "target": asked,
        "variants": [
            dataclasses.asdict(summary) | {"overrides": variant.overrides, "free_pilots": variant.free_pilots}
            for variant, summary in zip(variants, summaries, strict=True)
        ],
    }
    (workdir / "comparison.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return results


def accuracy_table(summaries: Sequence[Summary], seeds: int) -> str:
    """Accuracy of each variant, its difference to the baseline, and its cost; a Markdown table."""
    baselines = {summary.baseline for summary in summaries if summary.baseline}
    less = f"− {baselines.pop()}" if len(baselines) == 1 else "− baseline"
    rows = [["", "final accuracy", less, "mean accuracy", less, *COSTS]]
    for summary in summaries:
        values = (_show(summary.final), _show(summary.final_difference, "+"))
        values += (_show(summary.mean), _show(summary.mean_difference, "+"))
        rows.append([summary.label, *values, *(f"{summary.total[name]:,.0f}" for name in COSTS)])
    return f"Held-out accuracy, {seeds} seed{'s' if seeds > 1 else ''}:\n\n{tables.markdown(rows)}"


def target_table(summaries: Sequence[Summary], target: float | None, baseline: str, chosen: bool) -> str:
    """The cost to reach the target accuracy, and its ratios to the baseline's; a Markdown table.

    Args:
      summaries: of all variants.
      target: None = the baseline gains nothing, so there is none.
      baseline: label of the variant that the target was chosen by.
      chosen: it was, by `default_target`.
    """
    if target is None:
        return f"{baseline} did not gain held-out accuracy, so no target was chosen; name one with --target."
    rows = [["", "runs that reach it", "rollouts", *(f"{name}: ratio" for name in COSTS)]]
    for summary in summaries:
        costs = summary.cost_to_target["rollouts"]
        reached = [cost for cost in costs if cost is not None]
        rollouts = f"{np.mean(reached):,.0f}" if len(reached) == len(costs) else "not by all" if reached else "never"
        ratios = [_show_ratio(summary.ratio_to_target[name]) if summary.baseline else "" for name in COSTS]
        rows.append([summary.label, f"{len(reached)} of {len(costs)}", rollouts, *ratios])
    how = f" (where {baseline} has made 90 % of its gain)" if chosen else ""
    head = f"Cost to a held-out accuracy of {target:.3f}{how}, and its ratio to the baseline's:"
    return f"{head}\n\n{tables.markdown(rows)}"


def _show(value: Estimate | None, sign: str = "") -> str:
    """`0.893 ± 0.012`."""
    if value is None:
        return ""
    return f"{value.mean:{sign}.3f}" + ("" if value.low is None else f" ± {value.high - value.mean:.3f}")


def _show_ratio(ratio: Ratio | None) -> str:
    """`0.81 [0.70, 0.94]`, `≥ 1.20`, or `?`."""
    if ratio is None:
        return "?"
    interval = "" if ratio.low is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{ratio.sign} {ratio.mean:.2f}".lstrip() + interval
