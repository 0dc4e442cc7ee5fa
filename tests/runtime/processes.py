"""Python in processes of its own."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent.parent
CACHED = {  # variables of a process that trains: compiled as a user's, and kept
    "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}  # fmt: skip
SMALL_RUN = {  # fields of the quickstart for steps of a second
    "data.path": str(ROOT / "tests/sums.jsonl"), "prompts_per_step": 8, "rollouts_per_step": 16,
    "evaluation.prompts": 8, "rollout.slots": 16, "rollout.prefill_tokens": 256, "rollout.max_new_tokens": 24,
    "optimizer.micro_batch": 8, "gradient_norms.chunk": 8,
}  # fmt: skip


def start(code: str, *arguments, clear: tuple[str, ...] = (), **variables) -> subprocess.Popen:
    """Starts a program on the CPU, without the variables that begin with one of `clear`."""
    environment = {name: value for name, value in os.environ.items() if not clear or not name.startswith(clear)}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | variables
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment, text=True, **pipes)


def run(code: str, *arguments, **options) -> subprocess.CompletedProcess:
    """Starts it and waits for its end."""
    process = start(code, *arguments, **options)
    try:
        output, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run_together(code: str, *arguments, count: int = 2, **variables) -> list[subprocess.CompletedProcess]:
    """Several processes of one run; what each said, by its number."""
    job = {"JAX_COORDINATOR_ADDRESS": free_address(), "JAX_NUM_PROCESSES": str(count)}
    processes = [start(code, *arguments, **job, JAX_PROCESS_ID=str(i), **variables) for i in range(count)]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"
