"""An engine's end of the benchmark: a JSON object a line on stdin and stdout. Imports the standard library only."""

import ctypes
import importlib.metadata
import json
import os
import pathlib
import platform
import signal
import sys
import time
from collections.abc import Callable
from typing import Protocol

PR_SET_PDEATHSIG = 1


class Engine(Protocol):
    """What an engine's script loads."""

    configured: str  # how it was set up, in words

    def warm_up(self) -> None:
        """Compiles whatever `run` needs; its time is reported but not counted."""

    def run(self, counts: list[int], seed: int) -> dict:
        """Samples `counts[i]` responses of prompt i.

        Returns:
          "lengths": tokens of each response, ordered by prompt, stop token included; "prefill_seconds": of the run,
          None where it cannot be told apart; "seconds", where more was done than counts; and whatever else the engine
          knows of the run.
        """


def _return_free_memory() -> None:
    """Has glibc give back to the system what was freed and kept for later."""
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


def serve(load: Callable[[dict], Engine], packages: tuple[str, ...], device: Callable[[], dict]) -> None:
    """Load the workload's file `sys.argv[1]`, then answer requests {"counts": ..., "seed": ...} until stdin closes.

    Args:
      load: from the workload to an engine; imports what it needs itself, so that a missing package can be reported.
      packages: distributions whose versions belong to the result.
      device: of `torch_device` or `jax_device`: which device it is and how much of its memory was used.
    """
    if sys.platform == "linux":  # a stopped process would outlive a killed benchmark for ever
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print what they like

    def reply(**message) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        workload = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
        begin = time.perf_counter()
        engine = load(workload)
        loaded = time.perf_counter()
        engine.warm_up()
        versions = {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}}
        reply(
            configured=engine.configured,
            versions=versions,
            device=device()["kind"],
            load_seconds=loaded - begin,
            warm_up_seconds=time.perf_counter() - loaded,
        )
        for line in sys.stdin:
            begin = time.perf_counter()
            result = engine.run(**json.loads(line))
            result.setdefault("seconds", time.perf_counter() - begin)
            _return_free_memory()  # to the engine whose turn is next
            reply(device_bytes=device()["peak_bytes"], **result)
    except Exception as error:
        reply(error=f"{type(error).__name__}: {error}", not_installed=isinstance(error, ImportError))
        raise
