"""Report a run: a table and two plots from its workdir. `python -m gvm_jax.report WORKDIR`.

With several workdirs: one table with a column for each.
"""

import os
import pathlib
import sys
from collections.abc import Sequence

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import rich
from etils import epath

from gvm_jax.runtime.metrics import read_rows
from gvm_jax.runtime.progress import final_table
from gvm_jax.runtime.workdir import Workdir

USAGE = "usage: python -m gvm_jax.report WORKDIR [WORKDIR ...] (folders of runs; several are shown in one table)"


def show(workdir: os.PathLike[str]) -> None:
    """Print the table, draw the plots and say where everything is."""
    files, workdir = Workdir(workdir), epath.Path(workdir)
    rich.print(final_table(summary_rows(files.local), title=str(workdir)))
    for plot in (plot_learning_curve(files.local, workdir.name), plot_allocation(files.local, workdir.name)):
        if plot:
            print(f"plot        {workdir / str(plot.relative_to(files.local))}")
    files.close()
    print(f"metrics     {workdir / 'metrics.jsonl'}; for TensorBoard: {workdir / 'tensorboard'}")
    print(f"export      {sys.executable} -m gvm_jax.convert --workdir={workdir} --out={workdir / 'model'}")


def summary_rows(workdir: pathlib.Path) -> list[dict[str, str]]:
    """What the run reached and what it cost, a row each."""
    evaluations, metrics = _rows(workdir, "evaluation"), _rows(workdir, "metrics")
    rows = []
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        rows.append((f"held-out accuracy after step {first['step']}", f"{first['accuracy']:.3f}"))
        rows.append((f"held-out accuracy after step {last['step']}", f"{last['accuracy']:.3f}"))
    if metrics:
        last = metrics[-1]
        if evaluations and evaluations[-1]["step"] == last["step"]:
            last = {**last, **evaluations[-1]}  # its totals include the evaluation itself
        rows.append(("accept rate, last step", f"{last['reward/accept_rate']:.3f}"))
        for name in ("prompts", "rollouts", "sampled_tokens", "trained_tokens", "updates"):
            rows.append((name.replace("_", " "), f"{last[f'total/{name}']:,}"))
        for phase in ("rollout", "reward", "allocation", "update", "evaluation"):
            if f"total/seconds/{phase}" in last:
                rows.append((f"seconds: {phase}", f"{last[f'total/seconds/{phase}']:.1f}"))
    return [{"of the run": name, "": value} for name, value in rows]


def plot_learning_curve(workdir: pathlib.Path, name: str) -> pathlib.Path | None:
    """Held-out accuracy against rollouts; None for a run without evaluation."""
    rows = _rows(workdir, "evaluation")
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot([r["total/rollouts"] for r in rows], [r["accuracy"] for r in rows], marker="o", markersize=4)
    axes.set(xlabel="rollouts (pilots included)", ylabel="held-out accuracy", ylim=(0, 1), title=name)
    axes.grid(alpha=0.3)
    return _save(figure, workdir / "plots" / "accuracy_against_rollouts.png")


def plot_allocation(workdir: pathlib.Path, name: str, last_steps: int = 10) -> pathlib.Path | None:
    """Samples a prompt got against the accept rate it was believed to have, in the last steps."""
    rows = _rows(workdir, "allocation")[-last_steps:]
    if not rows:
        return None
    rate, count, norm = (
        np.concatenate([row[column] for row in rows])
        for column in ("believed_accept_rate", "count", "believed_gradient_norm")
    )
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    points = axes.scatter(rate, count, c=norm, s=14, alpha=0.7, cmap="viridis", linewidths=0)
    figure.colorbar(points, label="believed gradient norm")
    axes.set(
        xlabel="believed accept rate", ylabel="samples", xlim=(0, 1), ylim=(0, None),
        title=f"{name}: allocation, steps {rows[0]['step']} to {rows[-1]['step']}",
    )  # fmt: skip
    axes.grid(alpha=0.3)
    return _save(figure, workdir / "plots" / "allocation_against_accept_rate.png")


def _rows(workdir: pathlib.Path, table: str) -> list[dict]:
    return read_rows(workdir, table) if (workdir / f"{table}.jsonl").exists() else []


def _save(figure, path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def side_by_side(workdirs: Sequence[os.PathLike[str]]) -> list[dict[str, str]]:
    """What several runs reached and what it cost: a row each, a column a run."""
    columns = {}
    for workdir in workdirs:
        files = Workdir(workdir, active=False)
        columns[os.fspath(workdir)] = {row["of the run"]: row[""] for row in summary_rows(files.local)}
        files.close()
    names = dict.fromkeys(name for column in columns.values() for name in column)
    return [{"": name, **{run: column.get(name, "") for run, column in columns.items()}} for name in names]


def main() -> None:
    """Show one run with its plots, or several in one table."""
    workdirs = sys.argv[1:]
    if {"--help", "-h"} & set(workdirs):
        print(USAGE)
        return
    if not workdirs or any(workdir.startswith("-") for workdir in workdirs):
        sys.exit(USAGE)
    for workdir in workdirs:
        if not (epath.Path(workdir) / "config.json").exists():
            sys.exit(
                f"error: {workdir}: is not the folder of a run, which has a config.json; give a --workdir of training"
            )
    if len(workdirs) == 1:
        show(epath.Path(workdirs[0]))
    else:
        rich.print(final_table(side_by_side(workdirs)))


if __name__ == "__main__":
    main()
