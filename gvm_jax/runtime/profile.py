"""A trace of some steps by JAX's profiler: what the host and each device did, and when."""

import contextlib
import pathlib
import re
from collections.abc import Iterator

import jax

from gvm_jax.config import ConfigError


def parse_steps(text: str, done: int, last: int) -> range:
    """The numbers of the steps that --profile names: "3-5", or a count of them from the second one on.

    The first step of a process compiles, so a count leaves it out where others follow.

    Args:
      text: of the flag; "" = none.
      done: steps that the run has done.
      last: number of the run's last step.

    Raises:
      ConfigError: it is neither, or the run has no such steps.
    """
    if not text:
        return range(0)
    if not (found := re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", text)):
        raise ConfigError(f"--profile={text}: must be steps such as 3-5, or how many, such as 3")
    if not found[2]:
        first = max(done + 1, min(done + 2, last))
        return range(first, min(first + int(found[1]), last + 1))
    first, end = int(found[1]), int(found[2])
    if not first <= end <= last:
        raise ConfigError(f"--profile={text}: must be steps of 1 to {last}, the first one first")
    return range(max(first, done + 1), end + 1)


class StepTrace:
    """Traces the steps of a range into a folder.

    Args:
      steps: their numbers, one after another; an empty range traces nothing.
      folder: which gets `plugins/profile/TIME/`, with the trace in two forms.
      shown: what the folder is called in the line that says where the trace is; default: its path.
    """

    def __init__(self, steps: range, folder: pathlib.Path, shown: str = ""):
        self._steps, self._folder, self._shown = steps, folder, shown or str(folder)
        self._running = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Traces the body if it is one of the steps; the trace ends with the last of them, or where one raises."""
        if number not in self._steps:
            yield
            return
        if not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True
        try:
            with jax.profiler.StepTraceAnnotation("step", step_num=number):
                yield
        except BaseException:
            self.close()
            raise
        if number == self._steps[-1]:
            self.close()

    def close(self) -> None:
        """Writes what is traced so far."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            print(
                f"profile   {self._shown}: open its *.trace.json.gz at https://ui.perfetto.dev, or "
                f"`pip install xprof` and `xprof --logdir={self._shown}`",
                flush=True,
            )
