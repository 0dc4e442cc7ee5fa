"""Real signals set the flag, the former handlers come back, and the processes of a run hear of one another's."""

import os
import signal
import time

import pytest

from gvm_jax.runtime.preemption import EXIT_CODE, Preempted, StopSignal
from tests.runtime import processes


def test_sigterm_sets_the_flag_and_check_raises():
    with StopSignal() as stop:
        stop.check()
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(Preempted):
            stop.check()


def test_the_second_interrupt_is_immediate():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_former_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError), StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before[0]
        raise RuntimeError
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# The second process alone gets the signal, so the first one can only know by asking.
WORKER = """
import os, signal, sys, time
from ml_collections import ConfigDict
from gvm_jax.runtime import distributed
from gvm_jax.runtime.preemption import EXIT_CODE, Preempted, StopSignal

index = int(os.environ["JAX_PROCESS_ID"])
with distributed.start(ConfigDict({"start_seconds": 60.0, "peer_seconds": 10.0})), StopSignal() as stop:
    try:
        for step in range(1000):
            if (step, index) == (3, 1):
                os.kill(os.getpid(), signal.SIGTERM)
            stop.check()
            time.sleep(0.1)
    except Preempted:
        print("stopped at", step)
        sys.exit(EXIT_CODE)
"""


def test_a_process_hears_that_another_one_is_to_stop():
    first, second = processes.run_together(WORKER)
    assert (first.returncode, second.returncode) == (EXIT_CODE, EXIT_CODE), (first, second)
    lines = [done.stdout.splitlines()[-1] for done in (first, second)]
    assert lines[1] == "stopped at 3" and lines[0].startswith("stopped at ")


STUCK = """
import hashlib, os, signal, sys, threading
import gvm_jax.runtime.preemption as preemption

preemption._PATIENCE_SECONDS = 0.2
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
with preemption.StopSignal() as stop:
    stop.nothing_to_lose = sys.argv[1] == "nothing to lose"
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[2]))  # without Python's lock, as a compilation
    print("went on", stop.requested)
"""


def test_a_process_that_cannot_look_is_ended_where_it_has_nothing_to_lose():
    done = processes.run(STUCK, "nothing to lose", 1_000_000_000)
    assert (
        (done.returncode, done.stdout) == (EXIT_CODE, "")
        and EXIT_CODE == 128 + signal.SIGTERM
        and "with nothing to save" in done.stderr
    )
    done = processes.run(STUCK, "a step", 4_000_000)
    assert (done.returncode, done.stdout) == (0, "went on True\n")


def test_a_process_that_stops_by_itself_is_left_alone(monkeypatch):
    monkeypatch.setattr("gvm_jax.runtime.preemption._PATIENCE_SECONDS", 0.1)
    with StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3)
