"""Several processes as one run: found in the environment, started together, ended together."""

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import clusters  # jax.distributed.initialize detects the cluster too, but does not say what it found
from ml_collections import ConfigDict

from gvm_jax.config import ConfigError
from gvm_jax.runtime import preemption, watch
from gvm_jax.runtime.watch import Job

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_ECHO_SECONDS = 1.0  # another process's end is reported before the errors that it causes here


def find_job(timeout_seconds: float) -> Job | None:
    """The job that the environment describes; None without one.

    Either the three `VARIABLES` describe it or the cluster's own: Cloud TPU, SLURM, Open MPI, Kubernetes.

    Raises:
      ConfigError: some of the three variables are missing or malformed.
    """
    given = [os.environ.get(name) for name in VARIABLES]
    if not any(given):
        cluster = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, round(timeout_seconds)
        )
        return Job(*cluster) if None not in cluster[:3] else None
    shown = ", ".join(f"{name}={value or ''}" for name, value in zip(VARIABLES, given, strict=True))
    if not all(given):
        raise ConfigError(f"{shown}: set all three for a run of several processes, or none")
    address, processes, process = given
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and processes.isdecimal() and process.isdecimal()):
        raise ConfigError(f"{shown}: must be HOST:PORT of process 0, the number of processes, and this one's, from 0")
    if not int(process) < int(processes):
        raise ConfigError(f"{shown}: processes are numbered from 0 to JAX_NUM_PROCESSES - 1")
    return Job(address, int(processes), int(process), None)


@contextlib.contextmanager
def start(config: ConfigDict) -> Iterator[None]:
    """Joins the run's other processes, if it has any; enter it before any device is touched.

    Every process leaves it when all have reached its end. An exception ends the other processes too, whose logs name
    this process and its message. A `SystemExit` with 0 or `preemption.EXIT_CODE` does not, since all processes exit
    with it together.

    Args:
      config: the section `distributed` of the config.

    Raises:
      ConfigError: the environment does not describe a job.
      OSError: process 0 cannot listen on its address.

    When another process is lost, the process exits with `EXIT_CODE` at once, whatever its threads are doing.
    """
    job = find_job(config.start_seconds)
    if job is None or job.processes == 1:
        yield
        return
    connection = watch.current = watch.Watch(job, config.start_seconds, config.peer_seconds)
    address = connection.start()
    restore_aborts = _delay_aborts()
    agreed = None
    try:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            address,
            job.processes,
            job.process,
            local_device_ids=job.local_devices,
            initialization_timeout=_whole_seconds(config.start_seconds),
            # Longer than the watch takes: JAX ends a process without naming the missing one.
            heartbeat_timeout_seconds=_whole_seconds(10 * config.peer_seconds),
            shutdown_timeout_seconds=_whole_seconds(config.peer_seconds),
        )
        yield
    except BaseException as error:
        if not (isinstance(error, SystemExit) and error.code in (None, 0, preemption.EXIT_CODE)):
            time.sleep(_ECHO_SECONDS)
            connection.fail(error)
            # Python's own exit goes through JAX's shutdown, which waits for the other processes.
            os._exit(_report(error))
        agreed = error
    connection.finish()
    jax.distributed.shutdown()
    restore_aborts()
    if agreed is not None:
        raise agreed


def _whole_seconds(seconds: float) -> int:
    return max(1, round(seconds))


def _delay_aborts():
    """Makes `abort()` wait for six seconds; returns a function that undoes it.

    JAX aborts a process as soon as process 0, its coordinator, is gone, in a thread of C++ and before the watch could
    say why. This handler makes that thread sleep until the watch has ended the process. It is libc's `sleep` itself,
    which takes the signal's number, 6, as its seconds: no Python has to run, and an abort for any other reason goes on
    after them.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    former = libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    return lambda: libc.signal(signal.SIGABRT, former)


def _report(error: BaseException) -> int:
    """Prints an exception as Python does when nobody catches it; returns Python's exit code for it."""
    sys.stdout.flush()
    code: Any = 1
    if isinstance(error, SystemExit):
        code = error.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    else:
        traceback.print_exception(error)
        if isinstance(error, KeyboardInterrupt):
            code = 128 + signal.SIGINT
    sys.stderr.flush()
    return code
