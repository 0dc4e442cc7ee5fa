"""Connections by which the processes of a run notice that one of them is missing, dead, silent or failed.

JAX's own runtime connects the processes but does not say who is missing, and a process that waits in a collective for
a dead one waits for ever. So every process keeps a TCP connection to process 0. Process 0 names the lost process to all
others, and all exit with `EXIT_CODE`.
"""

import asyncio
import concurrent.futures
import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from typing import Any, NamedTuple

# A process exits with it when another one is missing, died or failed: sysexits.h's "try again later".
EXIT_CODE = 75
_GOODBYE_SECONDS = 2.0  # for the others to read why this process ends


class Job(NamedTuple):
    """This process among those of its run."""

    address: str  # host:port on which process 0 waits for the others
    processes: int
    process: int
    local_devices: list[int] | None  # GPUs of this process, where the cluster gives each process its own


class _Link:
    """A connection to another process: a JSON object a line. The empty one says "I am here"."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.name, self._reader, self._writer = name, reader, writer
        self.done = False  # the other process has finished
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
        """Returns when the other side has read everything and closed the connection, or after a timeout."""
        self._closing = True
        with contextlib.suppress(OSError, TimeoutError):
            self._writer.write_eof()
            await asyncio.wait_for(self._ended.wait(), _GOODBYE_SECONDS)


class Watch:
    """A thread that holds this process's connections: to process 0, or from process 0 to all others.

    Process 0 decides which process is lost and tells all; the others decide only that process 0 is lost.

    Args:
      job: this process's place in the run.
      start_seconds: time for all processes to connect.
      peer_seconds: silence after which a process counts as lost.
    """

    def __init__(self, job: Job, start_seconds: float, peer_seconds: float):
        self.process, self._job = job.process, job
        self._start_seconds, self._peer_seconds = start_seconds, peer_seconds
        self._name = f"process {job.process} ({socket.gethostname()})"
        self._links: dict[int, _Link] = {}
        self._leaving = False  # lost connections are expected: all have finished, or this process fails itself
        self._started = concurrent.futures.Future()  # of the address of JAX's coordinator
        self._finished = threading.Event()
        self._announced = threading.Event()

    def start(self) -> str:
        """Returns once all processes are connected, with the address for JAX's coordinator."""
        threading.Thread(target=self._run, daemon=True, name="watch").start()
        return self._started.result()

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process fails."""
        reason = str(error) if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(self._fail(reason), self._loop).result(3 * _GOODBYE_SECONDS)

    def announce_stop(self) -> None:
        """Tells all processes that the run is to stop; returns at once."""
        if not self._announced.is_set():
            self._announced.set()
            self._loop.call_soon_threadsafe(lambda: self._send_all(stop=True))

    def stop_announced(self) -> bool:
        return self._announced.is_set()

    def finish(self) -> None:
        """Returns when all processes have called it."""
        self._loop.call_soon_threadsafe(self._finish)
        self._finished.wait()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException:
            traceback.print_exc()
            os._exit(EXIT_CODE)  # the others notice and end too; without a watch this process could wait for ever

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._all_connected = asyncio.Event()
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
            await self._wait_for_all()
            address = f"{host}:{_free_port()}"
            self._send_all(start=address)
            self._started.set_result(address)
        await beats

    async def _beat(self) -> None:
        while not self._finished.is_set():
            self._send_all()
            await asyncio.sleep(self._peer_seconds / 4)

    def _send_all(self, **message: Any) -> None:
        for link in self._links.values():
            link.send(**message)

    async def _wait_for_all(self) -> None:
        """On process 0."""
        wait = asyncio.create_task(self._all_connected.wait())
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
        """Takes a connection to process 0. A process of another run is told so and turned away."""
        link = _Link("", reader, writer)
        try:
            hello = await link.receive(self._peer_seconds)
            process, link.name = int(hello["process"]), str(hello["name"])
        except (EOFError, TimeoutError, KeyError, TypeError, ValueError):
            writer.close()  # not one of this program's processes
            return
        refusal = None
        if hello.get("processes") != self._job.processes or not 0 < process < self._job.processes:
            refusal = f"{link.name} of {hello.get('processes')} does not belong to a run of {self._job.processes}"
        elif process in self._links:
            refusal = f"{link.name} came, but {self._links[process].name} is there already"
        if refusal:
            link.send(lost=f"{self._name} runs already: {refusal}. End the other run, or give every process its number")
            with contextlib.suppress(EOFError, TimeoutError):
                await link.receive(_GOODBYE_SECONDS)  # it reads the refusal and closes the connection
            writer.close()
            return
        link.send(name=self._name)
        self._links[process] = link
        if len(self._links) == self._job.processes - 1:
            self._all_connected.set()
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
        """Receives another process's messages until the end."""
        try:
            while True:
                self._receive(link, await link.receive(self._peer_seconds))
        except EOFError:
            await self._lose(f"{link.name} is gone: its connection closed. Its own log may tell why")
        except TimeoutError:
            await self._lose(f"{link.name} was silent for {self._peer_seconds:g} s (distributed.peer_seconds)")

    def _receive(self, link: _Link, message: dict[str, Any]) -> None:
        match message:
            case {"name": name}:
                link.name = name
            case {"start": address}:
                self._started.set_result(address)
            case {"stop": _}:
                self._announced.set()
                if self._job.process == 0:
                    self._send_all(stop=True)
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
            self._send_all(done=True)

    def _finish_if_all_are_done(self) -> None:
        if self._done and all(link.done for link in self._links.values()):
            self._send_all(finish=True)
            self._leaving = True
            self._finished.set()

    async def _fail(self, reason: str) -> None:
        self._leaving = True
        if self._job.process == 0:
            self._send_all(lost=f"{self._name} failed: {reason}")
        else:
            self._send_all(failed=reason)
        await self._close()

    async def _lose(self, reason: str) -> None:
        """Ends this process, and on process 0 all others."""
        if self._leaving:
            return
        self._leaving = True
        # Not print: the main thread may hold its lock for ever.
        os.write(2, f"error: {reason}\nerror: so {self._name} exits with code {EXIT_CODE}\n".encode())
        if self._job.process == 0:
            self._send_all(lost=reason)
            await self._close()
        os._exit(EXIT_CODE)

    async def _close(self) -> None:
        await asyncio.gather(*(link.close() for link in self._links.values()))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


current: Watch | None = None  # of this process; set by `distributed.start`, None for a run of one process
