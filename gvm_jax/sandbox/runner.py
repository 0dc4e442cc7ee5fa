"""Runs a program against tests, each in a confined process of its own, and leaves nothing of them behind."""

import json
import os
import pathlib
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from gvm_jax.sandbox.requirements import Tests

FOLDER_BYTES = 64 * 2**20  # of all files of a program
FOLDER_FILES = 1000
_LOOK_SECONDS = 0.05  # how often the folder is measured
_REPORT_BYTES = 2**16
_CHILD = pathlib.Path(__file__).with_name("child.py")


class Unprotected(RuntimeError):  # noqa: N818
    """A protection is missing on this machine."""


class Outcome(NamedTuple):
    """Result of a test run."""

    verdict: str  # passed | failed | slow: did not end in time | broken: the tests cannot judge any program
    reason: str  # for a person; "" where it passed


def run(program: str, tests: Tests, root: str, seconds: float, memory_bytes: int) -> Outcome:
    """Runs a program, the text of a Python module, against tests.

    Args:
      program: its text.
      tests: they end without an exception if the program is right.
      root: folder in which the program's own is made and removed again.
      seconds: for both processes to start and to end.
      memory_bytes: limit of each process.

    Raises:
      Unprotected: this machine cannot confine a process; the message tells why and what to do.
      RuntimeError: the tests' process ended without a verdict.
    """
    deadline = time.monotonic() + seconds
    folder = tempfile.mkdtemp(dir=root)
    channels = socket.socketpair()
    reports = [os.pipe(), os.pipe()]
    children: list[subprocess.Popen] = []
    limits = (str(os.getpid()), str(seconds), str(memory_bytes))
    try:
        for role, home, channel, (_, report) in zip(("player", "judge"), (folder, ""), channels, reports, strict=True):
            children.append(
                subprocess.Popen(
                    [sys.executable, "-sSPB", _CHILD, role, *limits, str(channel.fileno()), str(report), home],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd=home or "/",
                    env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "HOME": home, "TMPDIR": home},
                    start_new_session=True,
                    pass_fds=(channel.fileno(), report),
                )
            )
            channel.close()
            os.close(report)
        _give(children[0], {"program": program})
        _give(children[1], tests._asdict())
        return _wait([reader for reader, _ in reports], folder, deadline, children)
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()
        for channel in channels:
            channel.close()
        for i, (reader, report) in enumerate(reports):
            os.close(reader)
            if i >= len(children):
                os.close(report)
        remove(folder)


def remove(folder: str) -> None:
    """Removes a folder, also one in which a process that was just killed makes a last file."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.05)


def _give(child: subprocess.Popen, task: dict) -> None:
    try:
        with child.stdin:
            child.stdin.write(json.dumps(task).encode())
    except BrokenPipeError:
        pass  # it ended; that shows in what it reports


def _wait(readers: list[int], folder: str, deadline: float, children: list[subprocess.Popen]) -> Outcome:
    """Waits for the reports of both children: first that they are confined, then the judge's verdict."""
    texts = dict.fromkeys(readers, b"")
    waiting = set(readers)
    while waiting:
        ready, _, _ = select.select(list(waiting), [], [], max(0.0, min(_LOOK_SECONDS, deadline - time.monotonic())))
        for reader in ready:
            data = os.read(reader, _REPORT_BYTES)
            texts[reader] += data
            if not data or len(texts[reader]) > _REPORT_BYTES:
                waiting.remove(reader)
        for text in texts.values():
            for line in text.splitlines(keepends=True):
                if line.endswith(b"\n"):
                    verdict, reason = json.loads(line)
                    if verdict == "unprotected":
                        raise Unprotected(reason)
        if readers[1] not in waiting:
            break
        if _is_too_much(folder):
            return Outcome("failed", f"files of more than {FOLDER_BYTES} bytes, or more than {FOLDER_FILES}")
        if time.monotonic() >= deadline:
            return Outcome("slow", "the deadline")
    lines = [json.loads(line) for line in texts[readers[1]].splitlines()]
    if len(lines) < 2 or not texts[readers[0]]:
        ends = " and ".join(str(child.poll()) for child in children)
        raise RuntimeError(f"the processes of a test run ended without a verdict, with the statuses {ends}")
    return Outcome(*lines[1])


def _is_too_much(folder: str) -> bool:
    size = 0
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries, start=1):
            try:
                size += entry.stat(follow_symlinks=False).st_blocks * 512
            except FileNotFoundError:
                continue
            if number > FOLDER_FILES or size > FOLDER_BYTES:
                return True
    return False
