"""What a run has left in its workdir, and what is missing there."""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from gvm_jax.runtime.metrics import read_rows
from gvm_jax.runtime.workdir import Workdir, workdir_path

Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The record of one run; a file that is not there is a table without rows."""

    name: str
    config: dict[str, Any]  # {} without config.json
    metrics: Rows
    evaluation: Rows
    allocation: Rows
    samples: Rows
    about: dict[str, Any] = dataclasses.field(default_factory=dict)  # of `about.json`: dates, commit, devices

    @property
    def steps(self) -> int:
        """Steps that were done and recorded."""
        return self.metrics[-1]["step"] if self.metrics else 0

    def missing(self) -> list[str]:
        """What a reader may look for in vain, a sentence each with the reason."""
        planned, said = self.config.get("steps"), []
        if planned is not None and self.steps < planned:
            said.append(f"{self.steps} of {planned} steps are done so far; the run's own command resumes it.")
        if not self.metrics:
            said.append("No rewards, seconds and totals: metrics.jsonl is missing or has no line.")
        if not self.evaluation:
            off = self.config.get("evaluation", {}).get("path") == ""
            why = "evaluation.path is empty" if off else "evaluation.jsonl is missing or has no line"
            said.append(f"No held-out accuracy: {why}.")
        if not self.allocation:
            said.append("No allocation and no accept rates of prompts: allocation.jsonl is missing or has no line.")
        if not self.samples:
            kept = self.config.get("journal", {}).get("samples")
            why = {
                None: "the run's config has no journal.samples, as before samples were kept",
                0: "journal.samples is 0; set --config.journal.samples=16 to keep some of each step",
            }.get(kept, "samples.jsonl is missing or has no line")
            said.append(f"No samples to read: {why}.")
        return said


def read_run(workdir: str | os.PathLike[str], name: str | None = None) -> RunRecord:
    """The record of a run, by default named as its folder is.

    Raises:
      ConfigError: for a store that is not known.
      RecordError: for a line of its files that is not JSON.
    """
    files = Workdir(workdir)
    try:
        return RunRecord(
            name=name if name is not None else files.path.name,
            config=_object(files.path / "config.json"),
            about=_object(files.path / "about.json"),
            **{table: _rows(files.local, table) for table in ("metrics", "evaluation", "allocation", "samples")},
        )
    finally:
        files.close()


def read_runs(workdirs: Sequence[str | os.PathLike[str]]) -> list[RunRecord]:
    """The records of several runs, named by their paths without the folders that all of them lie in."""
    start = f"{folder_of_all(workdirs)}/".lstrip("/")
    names = [os.fspath(workdir_path(workdir)).lstrip("/").removeprefix(start) for workdir in workdirs]
    return [read_run(workdir, name) for workdir, name in zip(workdirs, names, strict=True)]


def folder_of_all(workdirs: Sequence[str | os.PathLike[str]]) -> str:
    """The innermost folder that all workdirs lie in; "" where that is the root, or they are in different stores."""
    folders = [os.fspath(workdir_path(workdir)).split("/")[:-1] for workdir in workdirs]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False))
    return "/".join(parts[0] for parts in shared)


class Group(NamedTuple):
    """Runs whose configs differ in the seed alone."""

    name: str
    runs: list[int]  # places in the list of all


def groups(runs: Sequence[RunRecord]) -> list[Group]:
    """The groups, in order of their first runs; one of several runs is named by the folder they lie in, if they do."""
    members: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        settings = {name: value for name, value in run.config.items() if name != "seed"}
        members.setdefault(json.dumps(settings, sort_keys=True) if settings else run.name, []).append(number)
    found = []
    for numbers in members.values():
        first, folders = runs[numbers[0]].name, {runs[i].name.rpartition("/")[0] for i in numbers}
        name = folders.pop() if len(folders) == 1 else ""
        several = f"{name} ({len(numbers)} seeds)" if name else f"{first} and {len(numbers) - 1} more"
        found.append(Group(several if len(numbers) > 1 else first, numbers))
    return found


def _object(path: epath.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _rows(workdir: pathlib.Path, table: str) -> Rows:
    return read_rows(workdir, table) if (workdir / f"{table}.jsonl").exists() else []
