"""The record of a run: JSON lines that a program reads, and TensorBoard for the eye.

`metrics.jsonl` has one line a step, `{"step": 3, "reward": 0.25, ...}`; a table such as `allocation.jsonl`
has one line a step too, with a list for each column. A non-finite number is `null`, since JSON has no NaN; it
is read back as NaN.
"""

import contextlib
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from gvm_jax.runtime.files import append_line, complete_lines, naming


def _plain(value: Any) -> int | float | str | None:
    """A host scalar (Python's or numpy's) or a text as JSON holds it."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, str):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def tagged(scalars: Mapping[str, Any], table: str) -> dict[str, float]:
    """The finite scalars as dashboards show them: `accuracy` of the table `evaluation` is `evaluation/accuracy`."""
    prefix = "" if table == "metrics" else f"{table}/"
    return {prefix + name: float(value) for name, value in scalars.items() if math.isfinite(value)}


class MetricsWriter(contextlib.AbstractContextManager):
    """Writes a run's scalars and tables under its workdir, so that no step appears twice after a resume.

    Args:
      workdir: folder of the run; made if missing.
      resume_step: the step the run resumes from. Lines of later steps and a torn last line are dropped, the others
        kept byte for byte. None = a run from its start: all lines are dropped.
      active: False on all processes but the first: nothing is touched.
      tables: other tables whose files are cut now, and not at their next line, which may never come.

    Attributes:
      dropped: the last step whose line in `metrics.jsonl` was dropped; 0 = none was.

    Raises:
      RecordError: for a line that is not JSON.
      OSError: the disk does not take the files; the message names them.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        resume_step: int | None = None,
        active: bool = True,
        tables: Sequence[str] = (),
    ) -> None:
        self._workdir = pathlib.Path(workdir)
        self._active = active
        self._first_step = 0 if resume_step is None else resume_step + 1
        self._files: dict[str, Any] = {}
        self.dropped = 0
        if not active:
            return
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._open("metrics")
        for table in tables:
            if (self._workdir / f"{table}.jsonl").exists():
                self._open(table)
        folder = self._workdir / "tensorboard"
        with naming(folder):
            folder.mkdir(exist_ok=True)
            # Without SummaryWriter's thread: a full disk ends that one, and then add_scalar waits for ever.
            # A file is named by the second it was made in; a quick resume must not overwrite the one before.
            self._tensorboard = EventsWriter(str(folder / "events"), f".from_step_{self._first_step}")
            purge = SessionLog(status=SessionLog.START)
            self._tensorboard.write_event(Event(wall_time=time.time(), step=self._first_step, session_log=purge))

    def last_step(self, table: str) -> int:
        """The last step in a table; 0 where there is none."""
        return max(self._files[table][1], 0) if table in self._files else 0

    def write(self, step: int, scalars: Mapping[str, Any], table: str = "metrics") -> None:
        """Appends a step's line to `<table>.jsonl` and its scalars to TensorBoard.

        Args:
          step: number of the step; larger than that of the line before.
          scalars: Python or numpy numbers by name; arrays on a device are fetched by the caller, all at once.
          table: where to; other tables than `metrics` prefix their name to TensorBoard's.

        Raises:
          ValueError: for a step that is already written.
        """
        if not self._active:
            return
        self._append(table, step, {name: _plain(value) for name, value in scalars.items()})
        with naming(self._workdir / "tensorboard"):
            for name, value in tagged(scalars, table).items():
                self._tensorboard.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            self._tensorboard.flush()

    def write_rows(self, table: str, step: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """Appends a step's rows to `<table>.jsonl`, as one line with a list for each column.

        Raises:
          ValueError: for columns of different lengths, or a step that is already written.
        """
        if not self._active:
            return
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{table}.jsonl, step {step}: columns must be of one length, found {lengths}")
        self._append(table, step, {name: [_plain(value) for value in column] for name, column in columns.items()})

    def close(self) -> None:
        """Flushes and closes all files."""
        if not self._active:
            return
        for file, _ in self._files.values():
            file.close()
        with naming(self._workdir / "tensorboard"):
            self._tensorboard.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, name: str) -> None:
        """Opens a file for appending, cut after the last line before the first step of this run."""
        path = self._workdir / f"{name}.jsonl"
        last_step, end = -1, 0
        if path.exists():
            kept = True
            for line, line_end in complete_lines(path):
                if kept := kept and line["step"] < self._first_step:
                    last_step, end = line["step"], line_end
                elif name == "metrics":
                    self.dropped = line["step"]
            os.truncate(path, end)
        self._files[name] = (path.open("ab", buffering=0), last_step)  # a line that failed is not tried again at close

    def _append(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        if name not in self._files:
            self._open(name)
        file, last_step = self._files[name]
        if step <= last_step:
            raise ValueError(
                f"{name}.jsonl: step {step} after step {last_step}; write a step once, with all its values"
            )
        append_line(file, {"step": step, **values})
        self._files[name] = (file, step)


def read_rows(workdir: str | os.PathLike[str], table: str = "metrics") -> list[dict[str, Any]]:
    """The lines of `<table>.jsonl` in a run's workdir, `null` as NaN; a torn last line is left out.

    Raises:
      FileNotFoundError: where the workdir has no such file.
      RecordError: for a line that is not JSON.
    """
    path = pathlib.Path(workdir) / f"{table}.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; name the --workdir of a run that has started")

    def number(value: Any) -> Any:
        if isinstance(value, list):
            return [number(item) for item in value]
        return math.nan if value is None else value

    return [{name: number(value) for name, value in line.items()} for line, _ in complete_lines(path)]
