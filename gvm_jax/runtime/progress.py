"""What a person sees of a run: a line a step, and a table at its end."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from rich.table import Table

from gvm_jax.runtime.live import LiveLine, duration

_HEADER_EVERY = 20
_COMPILE_SECONDS = 0.5  # shorter compilations are not mentioned
_COLUMNS = {  # title: width
    "step": 11,
    "reward": 7,
    "accept rate": 11,
    "held-out": 8,
    "rollouts": 11,
    "tokens": 15,
    "updates": 8,
    "seconds": 8,
}


class ProgressPrinter:
    """Prints one aligned line a step as plain text, the same in a terminal, a pipe and a log file.

    Args:
      steps: steps of the run.
      active: False on all processes but the first: nothing is printed.
      file: where to print; default standard output.
      scores: whether rewards are other than 0 and 1, so that the held-out column is a score and no accuracy.
      live: told of every step that ends.
    """

    def __init__(
        self,
        steps: int,
        active: bool = True,
        file: TextIO | None = None,
        scores: bool = False,
        live: LiveLine | None = None,
    ) -> None:
        self._steps, self._active, self._file, self._live = steps, active, file, live
        titles = {"held-out": "held-out score"} if scores else {}
        columns = {titles.get(title, title): width for title, width in _COLUMNS.items()}
        self._widths = {title: max(width, len(title)) for title, width in columns.items()}
        self._lines = 0

    def step(
        self,
        step: int,
        *,
        reward: float | None = None,
        accept_rate: float | None = None,
        held_out_accuracy: float | None = None,
        rollouts: int,
        tokens: int,
        updates: int,
        seconds: float,
        compile_seconds: float = 0.0,
    ) -> None:
        """Prints a step's line, under a header every 20 lines.

        Args:
          step: number of the step.
          reward: mean reward of its rollouts; None = no rollouts (step 0 is only evaluated), a blank.
          accept_rate: accepted samples per rollout; None = a blank.
          held_out_accuracy: accuracy of the evaluation at this step; None = no evaluation, a blank.
          rollouts: rollouts since the start of the run.
          tokens: sampled tokens since the start of the run.
          updates: optimizer updates since the start of the run.
          seconds: duration of the step without compilations.
          compile_seconds: of compilations in the step; printed behind the line.
        """
        if self._live is not None:
            self._live.end_step(step, seconds)
        if not self._active:
            return
        cells = (
            f"{step}/{self._steps}",
            *("" if value is None else f"{value:.3f}" for value in (reward, accept_rate, held_out_accuracy)),
            f"{rollouts:,}",
            f"{tokens:,}",
            f"{updates:,}",
            f"{seconds:.1f}",
        )
        if self._lines % _HEADER_EVERY == 0:
            self._print(tuple(self._widths))
        self._lines += 1
        self._print(cells, f"  + {compile_seconds:.1f} s compiling" if compile_seconds >= _COMPILE_SECONDS else "")

    def _print(self, cells: Sequence[str], remark: str = "") -> None:
        line = " ".join(cell.rjust(width) for cell, width in zip(cells, self._widths.values(), strict=True))
        # Looked up at each call, so that a redirected standard output is honoured. Flushed: a pipe buffers.
        print(line + remark, file=self._file or sys.stdout, flush=True)


def final_table(rows: Sequence[Mapping[str, object]], title: str = "") -> Table:
    """A table for `rich.print`: a row a mapping, the first one's keys as columns, missing values blank."""
    table = Table(title=title)
    columns = list(rows[0]) if rows else []
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    return table


class SampleProgress:
    """Prints how far a long sampling has come, with an estimate of the time left: a line now and then, and one at last.

    Shares of processes are alike, so all of them are taken to be as far as this one.

    Args:
      name: of the work.
      total: samples in all.
      done: those that were there before.
      sampled: gives the tokens that this process has sampled so far, of samples that have not ended too.
      processes: how many draw them.
      active: False on all processes but the first: nothing is printed.
      every: seconds between two lines.
      clock: seconds, for tests.
    """

    def __init__(
        self,
        name: str,
        total: int,
        done: int,
        sampled: Callable[[], int],
        processes: int = 1,
        active: bool = True,
        every: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._total, self._before, self._processes = name, total, done, processes
        self._sampled = sampled
        self._active, self._every, self._clock = active, every, clock
        self._start = self._last = clock()
        self._samples = self._correct = self._tokens = 0
        if active and done:
            print(f"{name}: {done:,}/{total:,} samples are there", flush=True)

    def add(self, tokens: int, correct: bool) -> None:
        """A sample has ended and is graded."""
        self._samples += 1
        self._tokens += tokens
        self._correct += correct
        if self._clock() - self._last >= self._every:
            self.show()

    def show(self) -> None:
        """Prints a line now."""
        self._last = self._clock()
        if not self._active or not self._samples:
            return
        spent = max(self._last - self._start, 1e-9)
        done = min(self._before + self._samples * self._processes, self._total)
        sampled = self._sampled() * self._processes
        # Assumes that the others are as long as those that have ended; short ones end first, so this is too little.
        to_sample = (self._total - self._before) * self._tokens / self._samples - sampled
        left = spent * max(to_sample, 0) / sampled
        print(
            f"{self._name}: {done:,}/{self._total:,} samples, {100 * self._correct / self._samples:.1f} % correct, "
            f"{sampled / spent:,.0f} tokens/s, {duration(spent)} spent, {duration(left)} left",
            flush=True,
        )
