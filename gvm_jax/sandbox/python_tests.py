"""Verifier of programs: runs the last code block of a response against the tests of its row."""

import ast
import dataclasses
import sys
import tempfile
import textwrap

from gvm_jax.rewards.answers import after_thinking
from gvm_jax.rewards.verdicts import ACCEPTED, REJECTED, Grade, Status
from gvm_jax.rewards.verifiers.verifier import Verifier
from gvm_jax.sandbox.requirements import read
from gvm_jax.sandbox.runner import Outcome, remove, run

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
_TAGS = ("python", "py", "python3")
_SPARE_SECONDS = 10.0  # beyond the program's own: the worker starts it, ends it and removes its folder
_ATTEMPTS = """
import ctypes, os, signal, socket, subprocess, threading
def thread():
    threading.Thread(target=int).start()
ATTEMPTS = {
    "a socket": lambda: socket.socket(),
    "a process": lambda: os.fork(),
    "a command": lambda: subprocess.run(["/bin/true"]),
    "a thread": thread,
    "a signal": lambda: os.kill(os.getppid(), 0),
    "a file of the machine": lambda: open("/etc/passwd"),
    "a file of a process": lambda: open("/proc/self/environ"),
    "a new file elsewhere": lambda: open("/tmp/gvm_jax_escape", "w"),
}
def escapes():
    found = []
    for name, attempt in ATTEMPTS.items():
        try:
            attempt()
            found.append(name)
        except (OSError, RuntimeError):
            pass
    with open("own", "w") as file:
        file.write("text")
    return found
"""


@dataclasses.dataclass(frozen=True)
class PythonTests(Verifier):
    r"""Answers are the last block of a response that is fenced as Python, else the last one fenced without a language.

    The reference is the text of tests, `assert add(1, 2) == 3`, which use names that the program must define. A program
    that fails a test, crashes, leaves its limits or does not end within `limits.deadline_seconds` is rejected: none of
    these is a failure of the verifier. Two answers are the same to a vote if their texts are.

    Attributes:
        root: folder that the programs' own folders are made in.
    """

    root: str = dataclasses.field(default_factory=lambda: tempfile.mkdtemp(prefix="gvm_jax_programs_"))

    @property
    def worker_seconds(self) -> float:
        return self.limits.deadline_seconds + _SPARE_SECONDS

    def answer(self, text: str) -> str | None:
        return last_program(text)

    def start(self) -> None:
        """Runs a program that tries to escape. Raises RuntimeError if it can, or cannot be run confined at all."""
        where = "rewards.function = 'python_tests'"
        if sys.platform != "linux":
            raise RuntimeError(
                f"{where}: programs are confined by Landlock and seccomp of Linux; this is {sys.platform}"
            )
        tests = "found = escapes()\nassert not found, found"
        try:
            outcome = self._run(_ATTEMPTS, tests, seconds=max(30.0, self.limits.deadline_seconds))
        except RuntimeError as error:
            raise RuntimeError(f"{where}: programs cannot be confined here. {error}") from error
        if outcome.verdict != "passed":
            raise RuntimeError(
                f"{where}: a program that tried to escape should have been refused everything and no more; "
                f"it {outcome.verdict} ({outcome.reason}). rewards.memory_mib = {self.limits.memory_mib} must do for "
                "Python itself"
            )

    def check(self, answer: str, reference: str) -> Grade:
        """1 if all tests pass, else 0. Raises RuntimeError if the tests cannot judge any program."""
        outcome = self._run(answer, reference, self.limits.deadline_seconds)
        if outcome.verdict == "broken":
            raise RuntimeError(outcome.reason)
        return {"passed": ACCEPTED, "failed": REJECTED, "slow": (0.0, Status.SLOW)}[outcome.verdict]

    def parses(self, reference: str) -> bool:
        """Whether it is Python that does more than define, with the standard library and names of a program."""
        try:
            tree = ast.parse(reference)
            tests = read(reference)
            compile(tests.text, "tests.py", "exec")  # finds more: a `return` outside of a function
        except (SyntaxError, ValueError):
            return False
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        return (
            {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
            and not all(isinstance(node, _DEFINITIONS) for node in tree.body)
            and bool(tests.names)
        )

    def close(self) -> None:
        remove(self.root)

    def _run(self, program: str, tests: str, seconds: float) -> Outcome:
        return run(program, read(tests), self.root, seconds, self.limits.memory_mib * 2**20)


def last_program(text: str) -> str | None:
    """The last complete fenced block marked as Python; else the last one without a mark; None without either.

    A fence is three backticks that start a line. One with a mark starts a block anew where another was not closed.
    Blocks in a `<think>` do not count.
    """
    marked = unmarked = None
    tag, lines = None, []
    for line in after_thinking(text).split("\n"):
        stripped = line.strip()
        if not stripped.startswith("```"):
            lines.append(line)
        elif tag is not None and stripped == "```":
            program = textwrap.dedent("\n".join(lines))
            if tag in _TAGS:
                marked = program
            elif not tag:
                unmarked = program
            tag = None
        else:
            tag, lines = stripped[3:].strip().lower(), []
    return unmarked if marked is None else marked
