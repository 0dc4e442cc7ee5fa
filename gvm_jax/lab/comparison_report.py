"""A comparison as tables, plots and JSON."""

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator

from gvm_jax.lab.comparison import COSTS, Curve, Estimate, MeanCurve, Ratio, Summary, default_target, summarise
from gvm_jax.lab.variants import Variant

AXES = {
    "rollouts": "rollouts",
    "tokens": "sampled tokens",
    "updates": "optimizer updates",
    "seconds": "seconds of training",
}
NOTES = """\
- Intervals: 95 %, Student's t over the seeds; none for one seed. Differences and ratios are taken seed by seed, ratios
  as logarithms. They speak of other seeds, not of other held-out problems, and know nothing of the number of rows.
- Mean accuracy: over training, the area under the curve of held-out accuracy against rollouts.
- Cost to the target: where a run's accuracy first is that high, linear between evaluations. A run that never is enters
  a ratio with its whole cost, so the ratio is only a bound (≥ or ≤); "?" = not even that.
- Rollouts and sampled tokens include pilots. Seconds leave evaluation and the first step's compilation out; a run that
  was stopped compiles again where it goes on, and that is in its seconds.
- A point of a curve is an evaluation: its accuracy and its costs are means over the seeds.
"""
_FREE_PILOTS_NOTE = "- Confound `pilots`: these rollouts are not counted as rollouts; their tokens and seconds are.\n"


def write(
    workdir: pathlib.Path,
    title: str,
    variants: Sequence[Variant],
    curves: Mapping[str, Sequence[Curve]],
    seeds: Sequence[int],
    target: float | None,
) -> str:
    """Write comparison.md, comparison.json and the plots; returns the tables as text.

    Args:
      workdir: folder of the comparison.
      title: what was compared, for headings.
      variants: all, baselines first.
      curves: label -> a curve for each of `seeds`.
      seeds: those that every variant has finished.
      target: held-out accuracy whose cost is compared; None = `default_target` of the first variant.
    """
    asked = target if target is not None else default_target(curves[variants[0].label])
    summaries = summarise(curves, {variant.label: variant.baseline for variant in variants}, asked)
    means = {label: MeanCurve.of(of_seeds) for label, of_seeds in curves.items()}
    tables = [accuracy_table(summaries, len(seeds)), target_table(summaries, asked, variants[0].label, target is None)]
    settings = [
        f"| {variant.label} | " + ", ".join(f"{k}={v}" for k, v in variant.overrides.items()) + " |"
        for variant in variants
    ]
    notes = NOTES + (_FREE_PILOTS_NOTE if any(variant.free_pilots for variant in variants) else "")
    files = [plot_curves(workdir, title, summaries, means, asked), plot_differences(workdir, title, summaries)]
    sections = [
        f"# {title}",
        *tables,
        "\n".join(f"![{file.stem}]({file.relative_to(workdir)})" for file in files if file),
        "\n".join(["| variant | sets |", "| --- | --- |", *settings]),
        f"Seeds: {', '.join(map(str, seeds))}.",
        notes.rstrip(),
    ]
    (workdir / "comparison.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    result = {
        "title": title,
        "seeds": list(seeds),
        "target": asked,
        "variants": [
            {
                **dataclasses.asdict(summary),
                "overrides": variant.overrides,
                "free_pilots": variant.free_pilots,
                "curve": _plain(means[variant.label]),
            }
            for variant, summary in zip(variants, summaries, strict=True)
        ],
    }
    (workdir / "comparison.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return "\n\n".join(tables)


def accuracy_table(summaries: Sequence[Summary], seeds: int) -> str:
    """What each variant reached, its difference to the baseline, and what it cost; a Markdown table."""
    baselines = {summary.baseline for summary in summaries if summary.baseline}
    less = f"− {baselines.pop()}" if len(baselines) == 1 else "− baseline"
    rows = [
        [
            summary.label,
            _show(summary.final),
            _show(summary.final_difference, "+"),
            _show(summary.mean),
            _show(summary.mean_difference, "+"),
            *(f"{summary.total[name]:,.0f}" for name in COSTS),
        ]
        for summary in summaries
    ]
    titles = ["", "final accuracy", less, "mean accuracy", less, *COSTS]
    return f"Held-out accuracy, {seeds} seed{'s' if seeds > 1 else ''}:\n\n{_table(titles, rows)}"


def target_table(summaries: Sequence[Summary], target: float | None, baseline: str, chosen: bool) -> str:
    """What it costs to reach the target accuracy, and the ratios to the baseline; a Markdown table.

    Args:
      summaries: of all variants.
      target: None = the baseline gains nothing, so there is none.
      baseline: label of the variant that the target was chosen by.
      chosen: it was, by `default_target`.
    """
    if target is None:
        return f"{baseline} did not gain held-out accuracy, so no target was chosen; name one with --target."
    rows = []
    for summary in summaries:
        costs = summary.cost_to_target["rollouts"]
        reached = [cost for cost in costs if cost is not None]
        rollouts = f"{np.mean(reached):,.0f}" if len(reached) == len(costs) else "not by all" if reached else "never"
        ratios = [_show_ratio(summary.ratio_to_target[name]) if summary.baseline else "" for name in COSTS]
        rows.append([summary.label, f"{len(reached)} of {len(costs)}", rollouts, *ratios])
    titles = ["", "runs that reach it", "rollouts", *(f"{name}: ratio" for name in COSTS)]
    how = f" (where {baseline} has made 90 % of its gain)" if chosen else ""
    return (
        f"Cost to a held-out accuracy of {target:.3f}{how}, and its ratio to the baseline's:\n\n{_table(titles, rows)}"
    )


def plot_curves(
    workdir: pathlib.Path,
    title: str,
    summaries: Sequence[Summary],
    means: Mapping[str, MeanCurve],
    target: float | None,
) -> pathlib.Path:
    """Held-out accuracy against each of the four costs, mean and 95 % band over the seeds."""
    figure, panels = plt.subplots(2, 2, figsize=(12, 8.5), sharey=True, layout="constrained")
    for axes, name in zip(panels.flat, COSTS, strict=True):
        for (label, curve), style in zip(means.items(), _styles(summaries), strict=True):
            cost, middle = curve.costs[name], [value.mean for value in curve.accuracy]
            axes.plot(cost, middle, label=label, linewidth=2, markersize=4.5, **style)
            if curve.accuracy[0].low is not None:
                bounds = [[getattr(value, end) for value in curve.accuracy] for end in ("low", "high")]
                axes.fill_between(
                    cost, *bounds, color=style["color"], alpha=0.15 if len(means) <= 4 else 0.07, linewidth=0
                )
        if target is not None:
            axes.axhline(target, color="0.5", linewidth=1, linestyle=":", label="target")
        axes.set_xlabel(AXES[name], fontsize=12)
        axes.set_xlim(left=0)
        if name in ("rollouts", "tokens"):
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.tick_params(labelsize=11)
        axes.grid(alpha=0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel("held-out accuracy", fontsize=12)
    figure.suptitle(title, fontsize=14)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    columns = max(1, min(len(labels), 130 // (max(map(len, labels)) + 8)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=11, frameon=False)
    return _save(figure, workdir / "plots" / "accuracy.png")


def plot_differences(workdir: pathlib.Path, title: str, summaries: Sequence[Summary]) -> pathlib.Path | None:
    """Each variant's difference to its baseline with its interval and the single seeds; None of baselines alone."""
    rows = [summary for summary in summaries if summary.baseline]
    if not rows:
        return None
    figure, panels = plt.subplots(
        1, 2, figsize=(12, 1.7 + 0.5 * len(rows)), sharey=True, sharex=True, layout="constrained"
    )
    for axes, name in zip(panels, ("final", "mean"), strict=True):
        for y, summary in enumerate(rows):
            difference: Estimate = getattr(summary, f"{name}_difference")
            if difference.low is not None:
                axes.plot([difference.low, difference.high], [y, y], color="C0", linewidth=2.5, solid_capstyle="butt")
                axes.plot(difference.by_seed, [y + 0.22] * len(difference.by_seed), "o", color="0.6", markersize=4)
            axes.plot(difference.mean, y, "D", color="C0", markersize=7)
        axes.axvline(0, color="black", linewidth=1)
        axes.set_xlabel(f"difference in {name} held-out accuracy", fontsize=12)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(labelsize=11)
        axes.grid(axis="x", alpha=0.3)
    labels = [_broken(summary.label) for summary in rows]
    panels[0].set(yticks=range(len(rows)), yticklabels=labels, ylim=(len(rows) - 0.4, -0.6))
    baselines = {summary.baseline for summary in rows}
    to = baselines.pop() if len(baselines) == 1 else "the baseline"
    grey = "" if rows[0].final.low is None else " (grey: the seeds)"
    figure.suptitle(f"{title}: difference to {to}{grey}", fontsize=14)
    return _save(figure, workdir / "plots" / "differences.png")


def _broken(label: str, width: int = 30) -> str:
    """The label in lines of about `width` letters, broken before a plus or a colon."""
    lines = [""]
    for part in re.findall(r"[+:]?[^+:]+", label):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _styles(summaries: Sequence[Summary]) -> list[dict[str, str]]:
    """Baselines are dashed. One is black, the others by colour; of several each shares its colour with its variants."""
    baselines = [summary.label for summary in summaries if summary.baseline is None]
    markers, alone, seen = "os^Dv", len(baselines) == 1, collections.Counter()
    styles = []
    for summary in summaries:
        group = "" if alone and summary.baseline else summary.baseline or summary.label
        number, own = seen[group], summary.baseline is None
        seen[group] += 1
        if alone:
            colour, marker = "black" if own else f"C{number % 10}", markers[0 if own else number // 10 % 5]
        else:
            colour, marker = f"C{baselines.index(group) % 10}", markers[number % 5]
        styles.append({"color": colour, "linestyle": "--" if own else "-", "marker": marker})
    return styles


def _save(figure, path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _plain(curve: MeanCurve) -> dict:
    costs = {name: values.tolist() for name, values in curve.costs.items()}
    accuracy = [dataclasses.asdict(value) for value in curve.accuracy]
    return {"step": curve.steps.tolist(), "accuracy": accuracy, **costs}


def _show(value: Estimate | None, sign: str = "") -> str:
    """`0.893 ± 0.012`."""
    if value is None:
        return ""
    return f"{value.mean:{sign}.3f}" + ("" if value.low is None else f" ± {value.high - value.mean:.3f}")


def _show_ratio(ratio: Ratio | None) -> str:
    """`0.81 [0.70, 0.94]`, `≥ 1.20`, or `?`."""
    if ratio is None:
        return "?"
    sign = {">=": "≥ ", "<=": "≤ ", "": ""}[ratio.sign]
    return f"{sign}{ratio.mean:.2f}" + ("" if ratio.low is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]")


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown with aligned columns: it reads as well in a terminal."""
    widths = [max(3, *(len(row[i]) for row in [titles, *rows])) for i in range(len(titles))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])

    return "\n".join(f"| {line(row)} |" for row in (titles, rule, *rows))
