"""What a person sees of a run: a line a step, a live line within a step, and a table at the end."""

import collections
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from absl import logging as absl_logging
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

_HEADER_EVERY = 20
_COMPILE_SECONDS = 0.5  # compilations shorter than this are not worth a word
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
_ACTIVITY = {  # a timer's phase -> the word on the live line
    "rollout": "sampling",
    "reward": "grading",
    "allocation": "allocating",
    "update": "updating",
    "evaluation": "evaluating",
}


class ProgressPrinter:
    """Prints one aligned line a step as plain text, the same in a terminal, a pipe and a log file.

    On a terminal a live line below it says what is being done: phase, sampled tokens, tokens/s, time left. The table
    and warnings (`plain_warnings`) are printed above it. `close` removes it.

    Args:
      steps: steps of the run.
      active: False on all processes but the first: nothing is printed.
      file: where to print; default standard output.
      scores: whether rewards are other than 0 and 1, so that the held-out column is a score and no accuracy.
      compiling: whether a program is being compiled right now.
      clock: seconds, for tests.
    """

    def __init__(
        self,
        steps: int,
        active: bool = True,
        file: TextIO | None = None,
        scores: bool = False,
        compiling: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps, self._active, self._file = steps, active, file
        titles = {"held-out": "held-out score"} if scores else {}
        self._widths = {
            titles.get(title, title): max(width, len(titles.get(title, ""))) for title, width in _COLUMNS.items()
        }
        self._lines = 0
        self._compiling, self._clock = compiling, clock
        self._live: Live | None = None
        self._done, self._activity, self._tokens, self._sampling_seconds = 0, "", 0, 0.0
        self._step_start = self._phase_start = clock()
        self._durations: collections.deque[float] = collections.deque(maxlen=10)

    def phase(self, name: str) -> None:
        """A phase of the step begins; a name of `_ACTIVITY`, or any other, which is shown as it is."""
        now = self._clock()
        if self._activity == "sampling":
            self._sampling_seconds += now - self._phase_start
        self._activity, self._phase_start = _ACTIVITY.get(name, name), now
        if self._live is None and self._active and (self._file or sys.stdout).isatty():
            self._live = Live(
                get_renderable=lambda: Text(self.status(), overflow="ellipsis", no_wrap=True),
                console=_Console(file=self._file), transient=True, refresh_per_second=4,
            )  # fmt: skip
            self._live.start()

    def tokens(self, sampled: int) -> None:
        """So many tokens have been sampled in this phase so far, by this process."""
        self._tokens = sampled

    def status(self) -> str:
        """The live line."""
        now = self._clock()
        parts = [
            f"step {min(self._done + 1, self._steps)}/{self._steps}",
            "compiling" if self._compiling() else self._activity,
        ]
        if self._tokens:
            spent = self._sampling_seconds + (now - self._phase_start) * (self._activity == "sampling")
            parts += [f"{self._tokens:,} tokens", f"{self._tokens / max(spent, 1e-9):,.0f} tokens/s"]
        parts.append(_duration(now - self._step_start))
        if self._durations:
            mean = sum(self._durations) / len(self._durations)
            left = mean * (self._steps - self._done) - (now - self._step_start)
            parts.append(f"{_duration(max(left, 0.0))} left")
        return "  ".join(parts)

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
        """Prints a step's line, under a header every 20 lines, and begins the next step.

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
        if step > 0:
            self._durations.append(seconds)
        self._done, self._step_start = step, self._clock()
        self._activity, self._tokens, self._sampling_seconds = "", 0, 0.0
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

    def close(self) -> None:
        """Removes the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, cells: Sequence[str], remark: str = "") -> None:
        line = " ".join(cell.rjust(width) for cell, width in zip(cells, self._widths.values(), strict=True))
        # Looked up at each call, so that a redirected standard output is honoured. Flushed: a pipe buffers.
        print(line + remark, file=self._file or sys.stdout, flush=True)


class _Console(Console):
    """A console that leaves the cursor alone: a process that is killed could not bring it back."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


class _PlainHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # Looked up at each call: a live line takes standard error's place while it is shown.
        print(f"{record.levelname.lower()}: {self.format(record)}", file=sys.stderr, flush=True)


def plain_warnings() -> None:
    """Makes warnings of the log plain lines, "warning: ...", in the place of absl's, which break a live line."""
    root = logging.getLogger()
    root.removeHandler(absl_logging.get_absl_handler())
    if not any(isinstance(handler, _PlainHandler) for handler in root.handlers):
        root.addHandler(_PlainHandler(logging.WARNING))


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
            f"{sampled / spent:,.0f} tokens/s, {_duration(spent)} spent, {_duration(left)} left",
            flush=True,
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
