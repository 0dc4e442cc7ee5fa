"""The worker pool: what a check may do to its process, and what reaches the parent and the other checks."""

import functools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError

import pytest

from gvm_jax.rewards import VerifierFailure, worker
from gvm_jax.rewards.worker_pool import WorkerPool

REPOSITORY = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
HANG = "9**9**9**9"
EXIT = "__import__('os')._exit(1)"
PROCESS_ID = "__import__('os').getpid()"
MEMORY_MIB = 512


def make_pool(deadline_seconds, prepare=bool):
    return WorkerPool(1, deadline_seconds, MEMORY_MIB, prepare)


@pytest.fixture(scope="module")
def pool():
    pool = make_pool(0.5)
    yield pool
    pool.close()


def run_script(folder, arguments, source, **options):
    """Starts Python on a script that is its `__main__`."""
    (folder / "script.py").write_text(source)
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, **options)


def test_a_deadline_counts_neither_the_queue_nor_the_start_of_a_worker(pool):
    start = time.monotonic()
    outcomes = [pool.run(eval, HANG), *(pool.run(eval, f"{i} + 1") for i in range(5))]
    pool.wait(outcomes[:1])
    assert isinstance(outcomes[0].exception(), TimeoutError)
    assert time.monotonic() - start < 3  # the deadline is 0.5, though the worker is deep in a C call
    pool.wait(outcomes)
    assert [outcome.result() for outcome in outcomes[1:]] == [1, 2, 3, 4, 5]


def test_a_worker_that_dies_costs_its_check_alone(pool):
    outcomes = [pool.run(eval, "1"), pool.run(eval, EXIT), pool.run(eval, "2")]
    pool.wait(outcomes)
    assert outcomes[1].exception() is not None
    assert not isinstance(outcomes[1].exception(), TimeoutError)
    assert (outcomes[0].result(), outcomes[2].result()) == (1, 2)


def test_a_worker_killed_while_idle_is_replaced(pool):
    worker = pool.run(eval, PROCESS_ID)
    pool.wait([worker])
    os.kill(worker.result(), signal.SIGKILL)
    time.sleep(0.5)
    other = pool.run(eval, PROCESS_ID)
    pool.wait([other])
    assert other.result() != worker.result()


def test_a_check_lost_with_its_pool_runs_again():
    pool = make_pool(30)
    worker = pool.run(eval, PROCESS_ID)
    pool.wait([worker])
    os.kill(worker.result(), signal.SIGKILL)  # the check below is queued before the pool knows
    outcome = pool.run(eval, "7")
    pool.wait([outcome])
    assert outcome.result() == 7
    pool.close()


def test_an_exception_that_cannot_be_unpickled_reaches_the_parent(pool):
    outcome = pool.run(eval, "type('Local', (Exception,), {})('x')._")
    raised = pool.run(eval, "(_ for _ in ()).throw(type('Local', (Exception,), {})('text'))")
    pool.wait([outcome, raised])
    assert isinstance(outcome.exception(), RuntimeError)
    assert str(raised.exception()) == "Local: text"


def test_a_worker_cannot_take_the_machines_memory(pool):
    outcomes = [pool.run(eval, f"len(bytes({2 * MEMORY_MIB * 2**20}))"), pool.run(eval, "1")]
    pool.wait(outcomes)
    assert "MemoryError" in str(outcomes[0].exception())
    assert outcomes[1].result() == 1


def test_checks_under_way_are_cancelled_when_the_pool_closes():
    pool = make_pool(60)
    outcomes = [pool.run(eval, HANG) for _ in range(3)]
    pool.close()
    pool.wait(outcomes)
    with pytest.raises(CancelledError):
        outcomes[0].result()
    with pytest.raises(RuntimeError, match="closed"):
        pool.run(eval, "1")


def test_workers_that_cannot_start_are_an_error(monkeypatch):
    monkeypatch.setattr(worker, "start", os._exit)  # for want of its argument it raises
    with pytest.raises(VerifierFailure, match="cannot start"):
        make_pool(1)


def test_what_a_worker_lacks_is_told():
    with pytest.raises(VerifierFailure, match="ValueError: invalid literal"):
        make_pool(1, functools.partial(int, "x"))


@pytest.mark.parametrize("arguments", [["script.py"], ["-m", "script"]], ids=["file", "module"])
def test_workers_import_neither_jax_nor_the_parents_main(tmp_path, arguments):
    (tmp_path / "jax.py").write_text("")  # stands in for jax: an import is an import
    source = f"""
import sys
import jax
from gvm_jax.rewards.verifiers import Limits
from gvm_jax.rewards.verifiers.mathematics import Mathematics
from gvm_jax.rewards.worker_pool import WorkerPool

main, spec = sys.modules["__main__"], __spec__
pool = WorkerPool(1, 30, 512, Mathematics(Limits(1, 512)).start)
for _ in range(2):  # the second time in a worker that the pool's own thread has started
    check = "[name in __import__('sys').modules for name in ('jax', 'numpy')]"
    modules, death = pool.run(eval, check), pool.run(eval, {EXIT!r})
    pool.wait([modules, death])
    print(modules.result())
pool.close()
print("jax" in sys.modules, __file__ == main.__file__, __spec__ is spec)
"""
    output, errors = run_script(tmp_path, arguments, source).communicate(timeout=60)
    assert output.splitlines() == [str([False] * 2)] * 2 + ["True True True"], errors


def test_signals_to_the_process_group_are_left_to_the_parent(tmp_path):
    source = f"""
import signal
from gvm_jax.rewards.verifiers import Limits
from gvm_jax.rewards.verifiers.mathematics import Mathematics
from gvm_jax.rewards.worker_pool import WorkerPool

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
pool = WorkerPool(1, 30, 512, Mathematics(Limits(1, 512)).start)
pool.wait([pool.run(eval, {EXIT!r})])
print("the next worker is starting", flush=True)
for _ in range(2):
    worker = pool.run(eval, {PROCESS_ID!r})
    pool.wait([worker])
    print(worker.result(), flush=True)
    input()
pool.close()
"""
    script = run_script(tmp_path, ["script.py"], source, stdin=subprocess.PIPE, start_new_session=True)
    script.stdout.readline()
    for _ in range(4):  # Python is up after 0.1 s, and then imports for a second
        time.sleep(0.25)
        os.killpg(script.pid, signal.SIGINT)
    before = script.stdout.readline()
    for number in (signal.SIGTERM, signal.SIGINT):
        os.killpg(script.pid, number)
    time.sleep(0.3)
    output, errors = script.communicate("\n\n", timeout=60)
    assert (output, errors) == (before, "")


def test_a_worker_without_a_parent_ends():
    source = f"from gvm_jax.rewards import worker; worker.ORPHAN_SECONDS = 0.1; worker.guarded(eval, ({HANG!r},), 0.1)"
    finished = subprocess.run([sys.executable, "-c", source], cwd=REPOSITORY, timeout=60)
    assert finished.returncode == -signal.SIGALRM


def test_waiting_can_be_given_up():
    class Stop(Exception):  # noqa: N818
        pass

    def stop():
        raise Stop

    pool = make_pool(60)
    start = time.monotonic()
    with pytest.raises(Stop):
        pool.wait([pool.run(eval, HANG)], stop)
    pool.close()
    assert time.monotonic() - start < 10


def test_a_process_that_ends_at_once_leaves_no_warning(tmp_path):
    source = """
import os
from gvm_jax.rewards.worker_pool import WorkerPool

if __name__ == "__main__":
    WorkerPool(1, 5.0, 512, bool)
    os._exit(3)
"""
    script = run_script(tmp_path, ["script.py"], source)
    assert (*script.communicate(timeout=60), script.returncode) == ("", "", 3)
