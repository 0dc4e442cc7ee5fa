"""Report runs: a table, plots, and one page of HTML that holds all that a browser needs."""

import os
import sys
from collections.abc import Sequence

import rich
from etils import epath

from gvm_jax.report.figures import plot_overview
from gvm_jax.report.final_numbers import side_by_side, summary_rows
from gvm_jax.report.page import render
from gvm_jax.report.records import RunRecord, read_run, read_runs
from gvm_jax.runtime.progress import final_table

__all__ = ["RunRecord", "read_run", "read_runs", "show", "show_several", "side_by_side", "summary_rows", "write"]

PAGE = "report.html"


def show(workdir: os.PathLike[str], out: os.PathLike[str] | None = None) -> None:
    """Print a run's table, write page and plots to `out` (default: its plots/) and say where everything is."""
    workdir = epath.Path(workdir)
    run = read_run(workdir)
    rich.print(final_table(summary_rows(run), title=str(workdir)))
    _say(write([run], epath.Path(out) if out else workdir / "plots"))
    print(f"metrics     {workdir / 'metrics.jsonl'}; for TensorBoard: {workdir / 'tensorboard'}")
    checkpoints = workdir / "checkpoints"
    if checkpoints.exists() and any(folder.name.isdecimal() for folder in checkpoints.iterdir()):
        print(f"export      {sys.executable} -m gvm_jax.convert --workdir={workdir} --out={workdir / 'model'}")


def show_several(workdirs: Sequence[os.PathLike[str]], out: os.PathLike[str]) -> None:
    """Print one table of all runs, write one page and the plots of all to `out` and say where they are."""
    runs = read_runs(workdirs)
    rich.print(final_table(side_by_side(runs)))
    _say(write(runs, epath.Path(out)))


def write(runs: Sequence[RunRecord], out: epath.Path) -> list[epath.Path]:
    """Write the page and the overview as an image; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    (out / PAGE).write_bytes(render(runs))
    return [out / PAGE, plot_overview(runs, out)]


def _say(files: Sequence[epath.Path]) -> None:
    for kind, file in zip(("page", "plot"), files, strict=True):
        print(f"{kind}        {file}")
