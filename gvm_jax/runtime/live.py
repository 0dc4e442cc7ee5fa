"""A line on a terminal that says what a run is doing within a step, and warnings that do not break it."""

import collections
import contextlib
import logging
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from absl import logging as absl_logging
from rich.console import Console
from rich.live import Live
from rich.text import Text

_ACTIVITY = {  # a timer's phase -> the word on the line
    "rollout": "sampling",
    "reward": "grading",
    "allocation": "allocating",
    "update": "updating",
    "evaluation": "evaluating",
}


class LiveLine(contextlib.AbstractContextManager):
    """Shows step, phase, sampled tokens, tokens/s, and the time left of the run, while it is entered.

    On a terminal alone: nothing is printed into a pipe or a file. What else is printed goes above the line.

    Args:
      steps: steps of the run.
      active: False on all processes but the first: nothing is printed.
      file: where to print; default standard output.
      compiling: whether a program is being compiled right now (`compilations.Compilations.compiling`).
      clock: seconds, for tests.
    """

    def __init__(
        self,
        steps: int,
        active: bool = True,
        file: TextIO | None = None,
        compiling: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps, self._compiling, self._clock = steps, compiling, clock
        self._durations: collections.deque[float] = collections.deque(maxlen=10)  # of the last steps
        self._activity, self._done = "", 0
        self._begin_step()
        self._shown: Live | None = None
        if active and (file or sys.stdout).isatty():
            console = _Console(file=file)
            self._shown = Live(
                get_renderable=lambda: Text(self.text()[: console.width - 1]), console=console, transient=True,
                refresh_per_second=4,
            )  # fmt: skip

    def __enter__(self) -> "LiveLine":
        if self._shown is not None:
            self._shown.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown is not None:
            self._shown.stop()

    def phase(self, name: str) -> None:
        """A phase begins: one of a timer ("rollout", "reward", "update", ...), or any text."""
        now = self._clock()
        if self._activity == "sampling":
            self._sampling_seconds += now - self._phase_start
        self._activity, self._phase_start = _ACTIVITY.get(name, name), now

    def tokens(self, sampled: int) -> None:
        """This process has sampled so many tokens in this step so far."""
        self._tokens = sampled

    def end_step(self, step: int, seconds: float) -> None:
        """A step has taken so many seconds; step 0 is an evaluation alone."""
        if step > 0:
            self._durations.append(seconds)
        self._activity, self._done = "", step
        self._begin_step()

    def text(self) -> str:
        now = self._clock()
        activity = "compiling" if self._compiling() else self._activity
        parts = [f"step {min(self._done + 1, self._steps)}/{self._steps}", activity]
        if self._tokens:
            spent = self._sampling_seconds + (now - self._phase_start) * (self._activity == "sampling")
            parts += [f"{self._tokens:,} tokens", f"{self._tokens / max(spent, 1e-9):,.0f} tokens/s"]
        elapsed = now - self._step_start
        parts.append(duration(elapsed))
        if self._durations:
            mean = sum(self._durations) / len(self._durations)
            parts.append(f"{duration(max(mean * (self._steps - self._done) - elapsed, 0.0))} left")
        return "  ".join(parts)

    def _begin_step(self) -> None:
        self._tokens, self._sampling_seconds = 0, 0.0
        self._step_start = self._phase_start = self._clock()


class _Console(Console):
    """A console that breaks no line, and leaves the cursor alone: a process that is killed could not bring it back."""

    def print(self, *objects: Any, soft_wrap: bool = True, **options: Any) -> None:
        super().print(*objects, soft_wrap=soft_wrap, **options)

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


def duration(seconds: float) -> str:
    """Such as "2 h 05 min", "3 min 07 s" or "12 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
