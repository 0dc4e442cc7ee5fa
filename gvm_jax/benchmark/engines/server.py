"""An engine's end of the benchmark: `python server.py MODULE.py:CLASS WORKLOAD.json`, then a JSON object a line.

Imports the standard library only, so that a missing package of the engine's can be reported.
"""

import ctypes
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import signal
import sys
import time

PR_SET_PDEATHSIG = 1


class Engine:
    """One task of an engine on a workload, which is the JSON object that `Workload.write` made."""

    packages: tuple[str, ...] = ()  # distributions whose versions belong to the result
    configured = ""  # how it was set up, in words

    def __init__(self, workload: dict):
        self.workload = workload

    @staticmethod
    def environment() -> dict[str, str]:
        """Variables that must be set when the interpreter starts."""
        return {}

    def warm_up(self) -> None:
        """Compiles whatever `run` needs; its time is reported but not counted."""
        self.run(self.workload["counts"], seed=0)

    def run(self, counts: list[int], seed: int) -> dict:
        """Samples `counts[i]` responses of prompt i, or computes with the given ones.

        Returns:
          "lengths": tokens of each response, ordered by prompt, stop token included (default: the given responses');
          "prefill_seconds": of the run (default: unknown); "seconds", where more was done than counts; and whatever
          else the engine knows of the run.
        """
        raise NotImplementedError

    def device(self) -> dict:
        """The "kind" of the device, and "peak_bytes" of its own memory that arrays took; None of a CPU."""
        return {"kind": "cpu", "peak_bytes": None}


def _load(name: str) -> type[Engine]:
    module, _, task = name.rpartition(":")
    path = pathlib.Path(module)
    sys.path.insert(0, str(path.parent))
    return getattr(importlib.import_module(path.stem), task)


def _return_free_memory() -> None:
    """Has glibc give back to the system what was freed and kept for later."""
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


def main(name: str, workload_file: str) -> None:
    """Load the engine and the workload, then answer requests {"counts": ..., "seed": ...} until stdin closes."""
    if sys.platform == "linux":  # a stopped process would outlive a killed benchmark for ever
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print what they like

    def reply(**message) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        workload = json.loads(pathlib.Path(workload_file).read_text(encoding="utf-8"))
        begin = time.perf_counter()
        task = _load(name)
        wanted = task.environment()
        if any(os.environ.get(variable) != value for variable, value in wanted.items()):
            os.dup2(channel.fileno(), sys.stdout.fileno())
            os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})
        engine = task(workload)
        loaded = time.perf_counter()
        engine.warm_up()
        versions = {package: importlib.metadata.version(package) for package in engine.packages}
        reply(
            configured=engine.configured,
            versions={"python": platform.python_version(), **versions},
            device=engine.device()["kind"],
            load_seconds=loaded - begin,
            warm_up_seconds=time.perf_counter() - loaded,
        )
        given = {"lengths": [len(response) for response in workload["responses"]], "prefill_seconds": None}
        for line in sys.stdin:
            begin = time.perf_counter()
            result = engine.run(**json.loads(line))
            seconds = time.perf_counter() - begin
            _return_free_memory()  # to the engine whose turn is next
            reply(device_bytes=engine.device()["peak_bytes"], **{**given, "seconds": seconds, **result})
    except Exception as error:
        reply(error=f"{type(error).__name__}: {error}", not_installed=isinstance(error, ImportError))
        raise


if __name__ == "__main__":
    sys.modules["server"] = sys.modules["__main__"]  # engines import `Engine` from here
    main(*sys.argv[1:])
