"""The two processes of a test run: `player` holds the program, `judge` the tests and the verdict.

The judge calls the program's functions and compares what comes back in a process of its own. So the program can end its
process, print, change builtins and walk the frames as it likes: neither the tests nor the verdict are there. Started by
`runner.py`, by path: the standard library alone.
"""

import json
import os
import random
import sys
import types
import warnings

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from confine import Unprotected, confine, die_with_parent
from proxy import Proxy, Unsupported
from rpc import Peer, Rules, text_of

del sys.path[0]


class Program:
    """The interface of the player that the judge calls."""

    def __init__(self, source: str, peer: Peer):
        self._source, self._peer = source, peer
        self._names = _module("solution")

    def load(self) -> None:
        exec(compile(self._source, "solution.py", "exec"), self._names)

    def present(self, names: list[str], classes: list[str]) -> list[str]:
        """The names that the program defines. Objects of its own `classes` are proxied from then on, not copied."""
        kinds = map(self._names.get, classes)
        self._peer.classes = tuple(x for x in kinds if isinstance(x, type) and x.__module__ == "solution")
        return [name for name in names if name in self._names]

    def value(self, name: str) -> object:
        return self._names[name]


def _module(name: str, **names: object) -> dict[str, object]:
    """Namespace of a new module in `sys.modules`, where dataclasses and pickle look up a class."""
    module = sys.modules[name] = types.ModuleType(name)
    module.__dict__.update(names)
    return module.__dict__


def play(source: str, channel: int) -> None:
    """Runs the program and answers the judge's requests until the connection ends."""
    peer = Peer(channel)
    peer.offer(Program(source, peer))
    peer.serve()


def judge(text: str, names: list[str], classes: list[str], in_place: bool, nan: bool, channel: int) -> tuple[str, str]:
    """Runs tests; the arguments are `requirements.Tests`.

    Returns:
      "passed", or "failed" and why, or "broken" and why: tests that cannot tell whether any program is right.
    """
    peer = Peer(channel, Rules(in_place, nan, operators=bool(classes)))
    try:
        program = peer.root
        program.load()
        present = program.present(names, classes)
        values = {name: program.value(name) for name in names if name in present}  # none that was not asked for
        if any(map(_catches_assertions, values.values())):
            return "failed", "a name stands for exceptions that tests raise themselves"
        peer.requests = 0
        exec(compile(text, "tests.py", "exec"), _module("__main__", **values))
        verdict = "passed", ""
    except Unsupported as error:
        verdict = "broken", str(error)
    except SystemExit:
        verdict = "broken", "the tests end their process"
    except BaseException as error:
        own_import = isinstance(error, ImportError) and not hasattr(error, "remote")
        verdict = "broken" if own_import else "failed", f"{type(error).__name__}: {text_of(error)}"
    if peer.failure:  # whatever the tests made of it
        return "failed", peer.failure
    if verdict[0] == "passed" and not peer.requests and not any(map(_is_plain, values.values())):
        return "broken", "the tests never call the program"
    return verdict


def _is_plain(value: object) -> bool:
    return not isinstance(value, Proxy)


def _catches_assertions(value: object) -> bool:
    """Whether `except value` would."""
    if isinstance(value, tuple):
        return any(map(_catches_assertions, value))
    return isinstance(value, type) and issubclass(value, BaseException) and issubclass(AssertionError, value)


def main() -> None:
    """Reads the task, confines this process and does the task."""
    role, parent, seconds, memory_bytes, channel, report, folder = sys.argv[1:]
    die_with_parent(int(parent))
    task = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    warnings.simplefilter("ignore")
    random.seed(0)  # equal verdicts of equal programs
    sys.argv = [""]
    try:
        confine(folder or None, float(seconds), int(memory_bytes))
        verdict = ("confined", "")
    except Unprotected as error:
        verdict = ("unprotected", str(error))
    os.write(int(report), (json.dumps(verdict) + "\n").encode())
    if verdict[0] == "unprotected":
        return
    if role == "player":
        os.close(int(report))
        play(task["program"], int(channel))
    else:
        verdict = judge(**task, channel=int(channel))
        os.write(int(report), (json.dumps((verdict[0], verdict[1][:1000])) + "\n").encode())


if __name__ == "__main__":
    main()
