"""Real processes over loopback: who is missing, dies, hangs or fails is named, and nobody waits for ever."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import time

import pytest
from ml_collections import ConfigDict

from gvm_jax.config import ConfigError
from gvm_jax.runtime import distributed, preemption
from gvm_jax.runtime.distributed import VARIABLES, find_job
from gvm_jax.runtime.watch import EXIT_CODE, Job
from tests.runtime import processes

START_SECONDS, PEER_SECONDS = 20.0, 3.0
HOST = socket.gethostname()

# Adds over all devices until it is told to stop; sys.argv[1] is what this process does once the others are at work.
WORKER = f"""
import sys, time
from ml_collections import ConfigDict
from gvm_jax.runtime import distributed

config = ConfigDict({{"start_seconds": {START_SECONDS}, "peer_seconds": {PEER_SECONDS}}})
config.update(eval(sys.argv[2]))
with distributed.start(config):
    import jax, jax.numpy as jnp, numpy as np
    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    add = jax.jit(lambda x: x.sum(), out_shardings=jax.NamedSharding(mesh, jax.P()))
    rows = np.arange(jax.device_count(), dtype=np.float32)
    rows = jax.make_array_from_callback(rows.shape, jax.NamedSharding(mesh, jax.P("x")), lambda i: rows[i])
    for step in range(10 if sys.argv[1] == "work" else 10**9):
        total = float(add(rows))
        if step == 2:
            print("at work", jax.process_index(), jax.process_count(), total, flush=True)
            if sys.argv[1] == "raise":
                raise ValueError("a file is missing here")
            if sys.argv[1].startswith("exit "):
                sys.exit(eval(sys.argv[1][5:]))
            if sys.argv[1].startswith("fail "):
                from gvm_jax import command
                command.fail(eval(sys.argv[1][5:]))
    if sys.argv[1] == "work" and jax.process_index() == 0:
        time.sleep({PEER_SECONDS + 1})  # longer than jax waits for others at the end
print("left", flush=True)
"""


class Worker:
    """A process that keeps what it says; `variables` describe its job."""

    def __init__(self, action, variables, **config):
        flags = "--xla_force_host_platform_device_count=2"
        self.process = processes.start(WORKER, action, repr(config), clear=VARIABLES, XLA_FLAGS=flags, **variables)

    def wait_for(self, start):
        """The first line that starts so; gloo writes there too."""
        for line in self.process.stdout:
            if line.startswith(start):
                return line.rstrip()
        pytest.fail(f"never said {start!r}: {self.process.stderr.read()}")

    def end(self, seconds=60):
        """Exit code and what was written to stderr."""
        try:
            _, errors = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"still there after {seconds} s: {self.process.communicate()}")
        return self.process.returncode, errors


@contextlib.contextmanager
def job(*actions, count=2, **config):
    """A worker for each action; `count` may be more than that."""
    address, workers = processes.free_address(), []
    try:
        for number, action in enumerate(actions):
            if action != "absent":
                values = (address, str(count), str(number))
                workers.append(Worker(action, dict(zip(VARIABLES, values, strict=True)), **config))
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.communicate()


@contextlib.contextmanager
def at_work():
    """Two workers that add until they are ended."""
    with job("loop", "loop") as workers:
        for worker in workers:
            worker.wait_for("at work")
        yield workers


def test_processes_work_together_and_leave_together():
    with job("work", "work") as workers:
        lines = [worker.wait_for("at work") for worker in workers]
        assert lines == ["at work 0 2 6.0", "at work 1 2 6.0"]
        for worker in workers:
            worker.wait_for("left")
            assert worker.end()[0] == 0


def test_one_process_has_nothing_to_join(monkeypatch):
    for name, value in zip(VARIABLES, ("127.0.0.1:1", "1", "0"), strict=True):
        monkeypatch.setenv(name, value)
    with distributed.start(ConfigDict({"start_seconds": 0.1, "peer_seconds": 0.1})):
        pass


def test_missing_processes_are_named_by_those_that_came():
    with job("work", "absent", "work", "absent", count=4, start_seconds=2.0) as workers:
        for worker in workers:
            code, errors = worker.end()
            assert code == EXIT_CODE
            assert "error: processes 1, 3 of 4 did not start within 2 s (distributed.start_seconds)" in errors
            assert f"Here: process 0 ({HOST}), process 2 ({HOST})" in errors


def test_a_missing_first_process_is_named():
    with job("absent", "work", start_seconds=1.0) as (worker,):
        code, errors = worker.end()
        assert code == EXIT_CODE
        assert "error: process 0 did not answer on 127.0.0.1:" in errors and "within 1 s" in errors


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (signal.SIGKILL, "is gone: its connection closed"),
        (signal.SIGSTOP, f"was silent for {PEER_SECONDS:g} s (distributed.peer_seconds)"),
    ],
)
def test_a_dead_or_silent_process_is_named_and_the_other_one_ends(victim, sent, reason):
    with at_work() as workers:
        workers[victim].process.send_signal(sent)
        began = time.monotonic()
        code, errors = workers[1 - victim].end()
        assert code == EXIT_CODE, errors
        assert f"error: process {victim} ({HOST}) {reason}" in errors
        assert f"error: so process {1 - victim} ({HOST}) exits with code {EXIT_CODE}" in errors
        assert time.monotonic() - began < 3 * PEER_SECONDS


def test_an_abort_leaves_the_watch_time_to_say_why():
    code = """
import ctypes, os, sys, threading, time
from gvm_jax.runtime.distributed import _delay_aborts
undo = _delay_aborts()
if len(sys.argv) > 1:
    undo()
threading.Thread(target=ctypes.CDLL(None).abort).start()
time.sleep(0.5)
os._exit(3)
"""
    assert processes.run(code).returncode == 3
    assert processes.run(code, "undo").returncode == -signal.SIGABRT


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_in_one_process_ends_the_other_with_its_message(failing):
    actions = ["loop", "loop"]
    actions[failing] = "raise"
    with job(*actions) as workers:
        code, errors = workers[failing].end()
        assert code == 1 and errors.rstrip().endswith("ValueError: a file is missing here")
        code, errors = workers[1 - failing].end()
        assert code == EXIT_CODE
        assert f"error: process {failing} ({HOST}) failed: ValueError: a file is missing here" in errors


def test_an_exit_with_a_message_is_a_failure_and_an_agreed_one_is_not():
    for action, own in [("exit 'error: no such config'", 1), ("fail 'no such config'", 2)]:
        with job("loop", action) as workers:
            code, errors = workers[1].end()
            assert code == own and errors.rstrip().endswith("error: no such config")
            assert errors.count("error: no such config") == 1
            code, errors = workers[0].end()
            assert code == EXIT_CODE and "failed: error: no such config" in errors
    with job(*[f"exit {preemption.EXIT_CODE}"] * 2) as workers:
        assert [worker.end()[0] for worker in workers] == [preemption.EXIT_CODE] * 2


def test_who_does_not_belong_is_refused_and_the_run_goes_on():
    with at_work() as workers:
        environment = pathlib.Path(f"/proc/{workers[0].process.pid}/environ").read_text().rstrip("\0").split("\0")
        address = dict(pair.split("=", 1) for pair in environment)[VARIABLES[0]]
        for number, total, message in [("1", "2", "process 1"), ("5", "8", "of 8 does not belong to a run of 2")]:
            stranger = Worker("work", dict(zip(VARIABLES, (address, total, number), strict=True)))
            code, errors = stranger.end()
            assert code == EXIT_CODE and "runs already" in errors and message in errors
        with socket.create_connection(address.rsplit(":", 1)) as scanner:
            scanner.sendall(b"GET / HTTP/1.1\r\n")
        time.sleep(0.5)
        assert [worker.process.poll() for worker in workers] == [None, None]


def test_slurm_is_detected():
    variables = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
    workers = [Worker("work", variables | {"SLURM_PROCID": i, "SLURM_LOCALID": i}) for i in "01"]
    try:
        assert workers[1].wait_for("at work") == "at work 1 2 6.0"
        assert [worker.end()[0] for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.process.kill()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("host:1", None, "0"), "JAX_COORDINATOR_ADDRESS=host:1, JAX_NUM_PROCESSES=, JAX_PROCESS_ID=0: set all three"),
        (("host", "2", "0"), "must be HOST:PORT of process 0"),
        (("host:1", "two", "0"), "must be HOST:PORT of process 0, the number of processes"),
        (("host:1", "2", "2"), "numbered from 0 to JAX_NUM_PROCESSES - 1"),
    ],
)
def test_a_job_that_is_half_described_is_refused(values, message, monkeypatch):
    for name, value in zip(VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=message):
        find_job(1.0)


def test_the_variables_describe_a_job_and_without_them_there_is_none(monkeypatch):
    for name, value in zip(VARIABLES, ("[::1]:8476", "4", "3"), strict=True):
        monkeypatch.setenv(name, value)
    assert find_job(1.0) == Job("[::1]:8476", 4, 3, None)
    for name in VARIABLES:
        monkeypatch.delenv(name)
    assert find_job(1.0) is None
