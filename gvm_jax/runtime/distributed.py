"""Several processes as one run: started together, watched, and ended together.

JAX's own runtime connects the processes but does not say who is missing, and a process that waits in a collective for
one that died waits for ever. So process 0 keeps a connection to every other one beside it: who comes late, dies, falls
silent or fails is named on every host, and all of them exit with `EXIT_CODE`.
"""

import asyncio
import concurrent.futures
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax._src import clusters
from ml_collections import ConfigDict

from gvm_jax.config import ConfigError
from gvm_jax.runtime import preemption

# Of a process that ends because another one is missing, died or failed: sysexits.h's "try again later".
EXIT_CODE = 75
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_GOODBYE_SECONDS = 2.0  # for the others to read why this process ends
_ECHO_SECONDS = 1.0  # for the news of another's end to come before the errors that it causes here


class Job(NamedTuple):
    """This process among those of its run."""

    address: str  # host:port on which process 0 waits for the others
    processes: int
    process: int
    local_devices: list[int] | None  # GPUs of this process, where the cluster gives each process its own


def find_job(timeout_seconds: float) -> Job | None:
    """The job that the environment describes; None without one.

    The three `VARIABLES` describe it, all of them, or the cluster does: Cloud TPU, SLURM, Open MPI, Kubernetes.

    Raises:
      ConfigError: some of the variables are missing, or hold something else than a job.
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

    Leave it on every process: it returns once all of them are done. An exception ends the others too; they name this
    process and its message. It is not for a `SystemExit` with 0 or `preemption.EXIT_CODE`, which all processes take
    together.

    Args:
      config: the section `distributed` of the config.

    Raises:
      ConfigError: the environment does not describe a job.
      OSError: process 0 cannot listen on its address.
      SystemExit: with `EXIT_CODE`, at once and in any thread's midst, when another process is lost.
    """
    job = find_job(config.start_seconds)
    if job is None or job.processes == 1:
        yield
        return
    watch = _Watch(job, config.start_seconds, config.peer_seconds)
    address = watch.start()
    former_action = _delay_aborts()
    agreed = None
    try:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            address,
            job.processes,
            job.process,
            local_device_ids=job.local_devices,
            initialization_timeout=_whole_seconds(config.start_seconds),
            # Longer than the watch takes: jax ends a process without a word of who is missing.
            heartbeat_timeout_seconds=_whole_seconds(10 * config.peer_seconds),
            shutdown_timeout_seconds=_whole_seconds(config.peer_seconds),
        )
        yield
    except BaseException as error:
        if not (isinstance(error, SystemExit) and error.code in (None, 0, preemption.EXIT_CODE)):
            time.sleep(_ECHO_SECONDS)
            watch.fail(error)
            # Python's own way out leads through jax's, which waits for the other processes.
            os._exit(_report(error))
        agreed = error
    watch.finish()
    jax.distributed.shutdown()
    former_action()
    if agreed is not None:
        raise agreed


def _whole_seconds(seconds: float) -> int:
    return max(1, round(seconds))


def _delay_aborts():
    """Makes `abort()` wait for six seconds; returns a function that undoes it.

    jax aborts a process in the moment in which process 0, its coordinator, goes: in a thread of C++, before Python
    could say why. So let that thread sleep, until the watch has found out and ended the process. The handler is libc's
    `sleep`, which takes the signal's number, 6, for its seconds: no Python has to run in it, and the abort of a process
    that has a reason of its own goes on after them.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    former = libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    return lambda: libc.signal(signal.SIGABRT, former)


def _report(error: BaseException) -> int:
    """Says what Python says of an exception that nobody catches; the exit code that goes with it."""
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


class _Link:
    """A connection to another process: a JSON object a line. The empty one says "I am here"."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.name, self._reader, self._writer = name, reader, writer
        self.done = False  # the other process has left `start`
        self._closing, self._ended = False, asyncio.Event()

    def send(self, **message: Any) -> None:
        if not self._closing:
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self, seconds: float) -> dict[str, Any]:
        """The next message; TimeoutError without one, EOFError at the connection's end."""
        try:
            line = await asyncio.wait_for(self._reader.readline(), seconds)
            message = json.loads(line) if line.endswith(b"\n") else None
        except (ConnectionError, ValueError):
            message = None
        if not isinstance(message, dict):
            self._ended.set()
            raise EOFError
        return message

    async def close(self) -> None:
        """Returns when the other side has read everything and is gone, or when that takes too long."""
        self._closing = True
        with contextlib.suppress(OSError, TimeoutError):
            self._writer.write_eof()
            await asyncio.wait_for(self._ended.wait(), _GOODBYE_SECONDS)


class _Watch:
    """The part of one process in watching all: a thread with connections to process 0, or of process 0 to all others.

    Process 0 judges: it names who is missing, closed its connection, was silent or reported a failure, and tells
    everyone. The others judge process 0.
    """

    def __init__(self, job: Job, start_seconds: float, peer_seconds: float):
        self._job, self._start_seconds, self._peer_seconds = job, start_seconds, peer_seconds
        self._name = f"process {job.process} ({socket.gethostname()})"
        self._links: dict[int, _Link] = {}
        self._leaving = False  # nobody is lost any more: all are done, or this process is the one that fails
        self._started = concurrent.futures.Future()  # of the address on which jax is to meet
        self._finished = threading.Event()

    def start(self) -> str:
        """Returns once all processes are there, with the address for jax's coordinator."""
        threading.Thread(target=self._run, daemon=True, name="watch").start()
        return self._started.result()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException:
            traceback.print_exc()
            os._exit(EXIT_CODE)  # the others see it and end too; unwatched, this process could wait for ever

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process fails."""
        reason = str(error) if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(self._fail(reason), self._loop).result(3 * _GOODBYE_SECONDS)

    def finish(self) -> None:
        """Returns when all processes have called it."""
        self._loop.call_soon_threadsafe(self._finish)
        self._finished.wait()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._all_here = asyncio.Event()
        self._done = False
        host, _, port = self._job.address.rpartition(":")
        try:
            if self._job.process == 0:
                server = await asyncio.start_server(self._admit, None, int(port))  # noqa: F841 - kept open
            else:
                await self._join(host.strip("[]"), int(port))
        except OSError as error:
            self._started.set_exception(OSError(f"{self._job.address}, the address of process 0: {error}"))
            return
        beats = asyncio.create_task(self._beat())
        if self._job.process == 0:
            await self._gather()
            address = f"{host}:{_free_port()}"
            self._tell_all(start=address)
            self._started.set_result(address)
        await beats

    async def _beat(self) -> None:
        while not self._finished.is_set():
            self._tell_all()
            await asyncio.sleep(self._peer_seconds / 4)

    def _tell_all(self, **message: Any) -> None:
        for link in self._links.values():
            link.send(**message)

    async def _gather(self) -> None:
        """Waits for all processes, on process 0."""
        wait = asyncio.create_task(self._all_here.wait())
        patience = min(10.0, self._start_seconds)
        await asyncio.wait([wait], timeout=patience)
        if not wait.done():
            print(f"waiting for {self._missing()}", file=sys.stderr, flush=True)
            await asyncio.wait([wait], timeout=self._start_seconds - patience)
        if not wait.done():
            here = ", ".join([self._name, *(link.name for _, link in sorted(self._links.items()))])
            await self._lose(
                f"{self._missing()} did not start within {self._start_seconds:g} s (distributed.start_seconds). "
                f"Here: {here}. Run the same command on every host, and see the logs of those that are missing"
            )

    def _missing(self) -> str:
        missing = [i for i in range(1, self._job.processes) if i not in self._links]
        return f"process{'es' * (len(missing) > 1)} {', '.join(map(str, missing))} of {self._job.processes}"

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes a connection in, on process 0. Whoever does not belong is told so; those that are here stay."""
        link = _Link("", reader, writer)
        try:
            hello = await link.receive(self._peer_seconds)
            process, link.name = int(hello["process"]), str(hello["name"])
        except (EOFError, TimeoutError, KeyError, TypeError, ValueError):
            writer.close()  # no process of ours
            return
        refusal = None
        if hello.get("processes") != self._job.processes or not 0 < process < self._job.processes:
            refusal = f"{link.name} of {hello.get('processes')} does not belong to a run of {self._job.processes}"
        elif process in self._links:
            refusal = f"{link.name} came, but {self._links[process].name} is there already"
        if refusal:
            link.send(lost=f"{self._name} runs already: {refusal}. End the other run, or give every process its number")
            with contextlib.suppress(EOFError, TimeoutError):
                await link.receive(_GOODBYE_SECONDS)  # it reads that and is gone
            writer.close()
            return
        link.send(name=self._name)
        self._links[process] = link
        if len(self._links) == self._job.processes - 1:
            self._all_here.set()
        with contextlib.suppress(asyncio.CancelledError):  # at the end; Python 3.11 would print it
            await self._listen(link)

    async def _join(self, host: str, port: int) -> None:
        """Connects to process 0, which may start later."""
        end = time.monotonic() + self._start_seconds
        while True:
            try:
                connecting = asyncio.open_connection(host, port)
                reader, writer = await asyncio.wait_for(connecting, max(0.1, end - time.monotonic()))
                break
            except OSError as error:  # TimeoutError too
                if time.monotonic() > end:
                    await self._lose(
                        f"process 0 did not answer on {self._job.address} within {self._start_seconds:g} s "
                        f"(distributed.start_seconds): {error or 'no connection'}. Run the same command on every host, "
                        "and see that the address is that of process 0"
                    )
                await asyncio.sleep(0.2)
        link = self._links[0] = _Link(f"process 0 ({self._job.address})", reader, writer)
        link.send(process=self._job.process, processes=self._job.processes, name=self._name)
        self._listening = asyncio.create_task(self._listen(link))

    async def _listen(self, link: _Link) -> None:
        """Hears another process until the end."""
        try:
            while True:
                self._hear(link, await link.receive(self._peer_seconds))
        except EOFError:
            await self._lose(f"{link.name} is gone: its connection closed. Its own log may tell why")
        except TimeoutError:
            await self._lose(f"{link.name} was silent for {self._peer_seconds:g} s (distributed.peer_seconds)")

    def _hear(self, link: _Link, message: dict[str, Any]) -> None:
        match message:
            case {"name": name}:
                link.name = name
            case {"start": address}:
                self._started.set_result(address)
            case {"failed": reason}:
                self._ending = asyncio.create_task(self._lose(f"{link.name} failed: {reason}"))
            case {"lost": reason}:
                self._ending = asyncio.create_task(self._lose(reason))
            case {"done": _}:
                link.done = True
                self._finish_if_all_are_done()
            case {"finish": _}:
                self._leaving = True
                self._finished.set()

    def _finish(self) -> None:
        self._done = True
        if self._job.process == 0:
            self._finish_if_all_are_done()
        else:
            self._tell_all(done=True)

    def _finish_if_all_are_done(self) -> None:
        if self._done and all(link.done for link in self._links.values()):
            self._tell_all(finish=True)
            self._leaving = True
            self._finished.set()

    async def _fail(self, reason: str) -> None:
        self._leaving = True
        if self._job.process == 0:
            self._tell_all(lost=f"{self._name} failed: {reason}")
        else:
            self._tell_all(failed=reason)
        await self._close()

    async def _lose(self, reason: str) -> None:
        """Ends this process, and on process 0 all others."""
        if self._leaving:
            return
        self._leaving = True
        # Not print: the main thread may hold its lock for ever.
        os.write(2, f"error: {reason}\nerror: so {self._name} exits with code {EXIT_CODE}\n".encode())
        if self._job.process == 0:
            self._tell_all(lost=reason)
            await self._close()
        os._exit(EXIT_CODE)

    async def _close(self) -> None:
        await asyncio.gather(*(link.close() for link in self._links.values()))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]
