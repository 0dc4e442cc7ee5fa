"""The plots of runs as images, for a paper or a message."""

import io
import textwrap
from collections.abc import Sequence

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from etils import epath

from gvm_jax.report.records import RunRecord, groups

_COLUMNS = 3  # panels side by side


def plot_learning_curves(runs: Sequence[RunRecord], out: epath.Path) -> epath.Path | None:
    """Held-out accuracy against rollouts; None where no run was evaluated."""
    if not any(run.evaluation for run in runs):
        return None
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for number, group in enumerate(groups(runs)):
        colour, dashes = f"C{number % 10}", ("-", "--", ":", "-.")[number // 10 % 4]
        for run in (runs[i] for i in group.runs):
            rollouts = [row.get("total/rollouts", np.nan) for row in run.evaluation]
            accuracy = [row["accuracy"] for row in run.evaluation]
            label = group.name if run is runs[group.runs[0]] else None
            axes.plot(rollouts, accuracy, dashes, color=colour, marker="o", markersize=4, label=label)
    axes.set(xlabel="rollouts (pilots included)", ylabel="held-out accuracy", ylim=(0, 1))
    if len(runs) == 1:
        axes.set_title(runs[0].name)
    else:
        axes.legend(fontsize="small").set_in_layout(False)
    axes.grid(alpha=0.3)
    return _save(figure, out / "accuracy_against_rollouts.png")


def plot_allocation(runs: Sequence[RunRecord], out: epath.Path, last_steps: int = 10) -> epath.Path | None:
    """Samples a prompt got against the accept rate it was believed to have, in the last steps, a panel a run."""
    runs = [run for run in runs if run.allocation]
    if not runs:
        return None
    columns = min(len(runs), _COLUMNS)
    lines = -(-len(runs) // columns)
    size = (7, 4.5) if len(runs) == 1 else (4.5 * columns, 3.4 * lines)
    figure, panels = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for panel in panels.flat[len(runs) :]:
        panel.set_visible(False)
    for run, axes in zip(runs, panels.flat, strict=False):
        rows = run.allocation[-last_steps:]
        rate, count, norm = (
            np.concatenate([row[column] for row in rows])
            for column in ("believed_accept_rate", "count", "believed_gradient_norm")
        )
        points = axes.scatter(rate, count, c=norm, s=14, alpha=0.7, cmap="viridis", linewidths=0)
        figure.colorbar(points, label="believed gradient norm")
        axes.set(
            xlabel="believed accept rate", ylabel="samples", xlim=(0, 1), ylim=(0, None),
        )  # fmt: skip
        title = f"{run.name}: allocation, steps {rows[0]['step']} to {rows[-1]['step']}"
        axes.set_title("\n".join(textwrap.wrap(title, 46)), fontsize="medium")
        axes.grid(alpha=0.3)
    return _save(figure, out / "allocation_against_accept_rate.png")


def _save(figure, path: epath.Path) -> epath.Path:
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png")
    plt.close(figure)
    path.write_bytes(image.getvalue())
    return path
