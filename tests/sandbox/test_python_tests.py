"""Programs in responses: which is taken, how it is graded, and what is left behind."""

import os
import pathlib
import tempfile
import time

import pytest

from gvm_jax.rewards import Grader, Status, Verdict, VerifierFailure, worker
from gvm_jax.rewards.verifiers import Limits
from gvm_jax.sandbox import python_tests, runner
from gvm_jax.sandbox.python_tests import last_program

DEADLINE = 1.0
ADD = "def add(a, b):\n    return a + b"
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"


def make_grader(**arguments):
    defaults = {"workers": 1, "deadline_seconds": DEADLINE, "memory_mib": 256, "max_failure_rate": 0.0}
    return Grader("python_tests", **defaults | arguments)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def grader():
    with make_grader(workers=2) as grader:
        yield grader


def fenced(program: str) -> str:
    return f"Sure.\n```python\n{program}\n```\nThis adds."


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (fenced("x = 1"), "x = 1"), (fenced("x = 1") + "\n" + fenced("x = 2"), "x = 2"), ("```\nx = 1\n```", "x = 1"),
        ("```py\nx = 1\n```\n```\n>>> x\n1\n```", "x = 1"), ("```Python\r\nx = 1\n```", "x = 1"),
        ("1. So:\n   ```python\n   if x:\n       y = 1\n   ```", "if x:\n    y = 1"), ("```bash\nls\n```", None),
        (f"<think>{fenced('x = 1')}</think>\n{fenced('x = 2')}", "x = 2"),
        (f"<think>{fenced('x = 1')}</think>\nDone.", None), (f"<think>{fenced('x = 1')}", None),
        ("```python\nx = 1", None), ("```python\nx = 1\n```\n```python\nx = ", "x = 1"),
        ("```python\nx = 1\n```python\nx = 2\n```", "x = 2"), ("```python\n```", ""), ("x = 1", None), ("", None),
    ],
)  # fmt: skip
def test_the_last_block_is_the_program(text, program):
    assert last_program(text) == program


def test_long_texts_take_linear_time():
    start = time.monotonic()
    for text in ("```python\n" * 10**6, "```\n" * 10**6, "`" * 10**7, "\n" * 10**7):
        last_program(text)
    assert time.monotonic() - start < 20


def test_programs_are_graded_by_all_tests(grader):
    texts = [fenced(ADD), fenced("def add(a, b):\n    return 3"), "add = 1", fenced("while True: pass"), fenced("")]
    verdicts = grader.grade(texts, [TESTS] * 5)
    assert verdicts == [
        Verdict(1.0, Status.CORRECT, ADD),
        Verdict(0.0, Status.WRONG, "def add(a, b):\n    return 3"),
        Verdict(0.0, Status.NO_ANSWER, None),
        Verdict(0.0, Status.SLOW, "while True: pass"),
        Verdict(0.0, Status.NO_ANSWER, ""),
    ]


def test_a_module_of_the_tests_is_not_the_programs(grader):
    program = "class math:\n    def isclose(*_): return True\ndef area(x): return 0"
    tests = "assert math.isclose(area(2), 4)"
    right = "def area(x): return x * x"
    verdicts = grader.grade([fenced(program), fenced(right)], [tests] * 2)
    assert [verdict.status for verdict in verdicts] == [Status.WRONG, Status.CORRECT]


def test_programs_that_misbehave_are_no_failure_of_the_verifier(grader):
    """The fixture allows none."""
    programs = ["import os\nos._exit(0)", "while True: pass", "import ctypes\nctypes.string_at(0)", "x = bytes(2**40)"]
    verdicts = grader.grade(list(map(fenced, programs)), [TESTS] * len(programs))
    assert {verdict.score for verdict in verdicts} == {0.0}


def test_tests_that_tell_nothing_are_a_failure():
    with make_grader() as grader, pytest.raises(VerifierFailure, match="never call the program"):
        grader.grade([fenced(ADD)], ["def test_add():\n    assert add(1, 2) == 3"])


def test_references_are_texts_of_tests_that_want_a_program(grader):
    usable = [TESTS, "import math\n" + TESTS, "def check(f):\n    assert f(1, 2) == 3\ncheck(add)"]
    unusable = ["assert add(1, 2) =", "assert sum([1, 2]) == 3", "42", "\0", "(" * 10**5, "import numpy\n" + TESTS]
    unusable += ["return f(1)", "await f(1)", "from __future__ import annotations\nassert math.isclose(f(1), 1)"]
    unusable += ["from numpy.linalg import norm\n" + TESTS, "def test_add():\n    assert add(1, 2) == 3"]
    assert grader.parses(usable + unusable).tolist() == [True] * len(usable) + [False] * len(unusable)


def test_votes_are_by_text(grader):
    assert grader.equivalent([("def f(): return 1", "def f(): return 2")]) == [False]


def test_nothing_is_left(scratch):
    with make_grader() as grader:
        (root,) = scratch.iterdir()
        grader.grade([fenced("open('a', 'w').write('text')\n" + ADD)], [TESTS])
        assert list(root.iterdir()) == []
    assert list(scratch.iterdir()) == []


def test_nothing_is_left_of_a_grader_that_is_closed_at_work(scratch):
    grader = make_grader(deadline_seconds=60.0)
    grader.submit(fenced("open('a', 'w').write('text')\nwhile True: pass"), TESTS)
    end = time.monotonic() + 30
    while not list(scratch.glob("*/*/a")) and time.monotonic() < end:
        time.sleep(0.02)
    grader.close()
    assert list(scratch.iterdir()) == []


def test_a_start_that_fails_leaves_nothing(scratch, monkeypatch):
    monkeypatch.setattr(worker, "start", os._exit)  # for want of its argument it raises
    with pytest.raises(VerifierFailure, match="cannot start"):
        make_grader()
    assert list(scratch.iterdir()) == []


def test_what_is_not_refused_is_told_at_the_start(scratch, monkeypatch):
    """Without the filter of system calls, but with all else."""
    folder = pathlib.Path(runner.__file__).parent
    for file in folder.glob("*.py"):
        text = file.read_text()
        (scratch / file.name).write_text(text.replace("    _restrict_calls(libc)\n", ""))
    monkeypatch.setattr(runner, "_CHILD", scratch / "child.py")
    verifier = python_tests.PythonTests(Limits(1.0, 256))
    with pytest.raises(
        RuntimeError, match=r"'python_tests': a program .* failed .*'a socket', 'a process', 'a thread'"
    ):
        verifier.start()
    verifier.close()


def test_other_systems_are_refused(monkeypatch):
    monkeypatch.setattr(python_tests.sys, "platform", "darwin")
    verifier = python_tests.PythonTests(Limits(1.0, 256), root="")
    with pytest.raises(RuntimeError, match=r"'python_tests': .* of Linux; this is darwin"):
        verifier.start()
