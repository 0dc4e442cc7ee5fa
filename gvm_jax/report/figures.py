"""One picture of runs for a paper or a message: learning curves beside the allocation."""

import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from etils import epath
from matplotlib.ticker import MaxNLocator

from gvm_jax.report.records import RunRecord, groups

_LINES = ("-", "--", ":", "-.")


def plot_overview(runs: Sequence[RunRecord], out: epath.Path, last_steps: int = 10) -> epath.Path:
    """Writes `overview.png`: held-out accuracy over rollouts, and samples by estimated accept rate in the last steps.

    A colour is a group of runs that differ in their seed; of a single run the samples are coloured by G.
    """
    figure, (curves, allocation) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, group in enumerate(groups(runs)):
        colour, dashes = f"C{number % 10}", _LINES[number // 10 % len(_LINES)]
        for place, run in enumerate(runs[i] for i in group.runs):
            rollouts = [row.get("total/rollouts", np.nan) for row in run.evaluation]
            accuracy = [row["accuracy"] for row in run.evaluation]
            label = None if place else group.name
            curves.plot(rollouts, accuracy, dashes, color=colour, marker="o", markersize=4, label=label)
            if run.allocation:
                rate, count, norm = _columns(run, last_steps)
                colours = {"c": norm, "cmap": "viridis"} if len(runs) == 1 else {"color": colour, "label": label}
                points = allocation.scatter(rate, count, s=14, alpha=0.6, linewidths=0, **colours)
                if len(runs) == 1:
                    figure.colorbar(points, label="estimated gradient norm G")
    curves.set(xlabel="rollouts (pilots included)", ylabel="held-out accuracy", ylim=(0, 1))
    steps = f"the last {last_steps} steps"
    allocation.set(xlabel="estimated accept rate p", ylabel=f"samples of a prompt, {steps}", xlim=(0, 1))
    allocation.set_yscale("symlog", linthresh=1)  # 0 is a count too
    allocation.set_ylim(bottom=0)
    allocation.yaxis.set_major_formatter("{x:.0f}")
    curves.xaxis.set_major_locator(MaxNLocator(6))
    curves.xaxis.set_major_formatter("{x:,.0f}")
    for axes in (curves, allocation):
        axes.grid(alpha=0.3)
        if len(runs) > 1:
            axes.legend(fontsize="small").set_in_layout(False)
    return _save(figure, out / "overview.png")


def _columns(run: RunRecord, last_steps: int) -> list[np.ndarray]:
    """Accept rate, count and gradient norm of each prompt of the last steps."""
    names = ("believed_accept_rate", "count", "believed_gradient_norm")
    return [np.concatenate([row[name] for row in run.allocation[-last_steps:]]) for name in names]


def _save(figure, path: epath.Path) -> epath.Path:
    image = io.BytesIO()
    figure.savefig(image, dpi=110, format="png")
    plt.close(figure)
    path.write_bytes(image.getvalue())
    return path
