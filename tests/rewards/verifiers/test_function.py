"""A user's function is found, called and taken at its word, and what it does wrong is told."""

import subprocess
import sys
import textwrap

import pytest

from gvm_jax.rewards import Grader, Status, Verdict, VerifierFailure
from tests.test_train import ROOT

SOURCE = """
import os
import time
import numpy as np

def by_length(texts, references):
    return [min(len(text), 10) / 10 for text in texts]

def literal(texts, references):
    return eval(references[0], {"text": texts[0], "texts": texts, "np": np, "time": time, "os": os})

class Scorer:
    @staticmethod
    def score(texts, references):
        return [(text in reference, "correct" if text in reference else "wrong")
                for text, reference in zip(texts, references, strict=True)]

not_a_function = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_rewards.py").write_text(SOURCE)
    (folder / "broken_rewards.py").write_text("import no_such_package\n")
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def make_grader(function, **arguments):
    defaults = {"workers": 1, "deadline_seconds": 1.0, "memory_mib": 512, "max_failure_rate": 1.0}
    return Grader(function, **defaults | arguments)


@pytest.fixture(scope="module")
def literal(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with make_grader("own_rewards:literal") as grader:
            yield grader


def test_scores_are_the_functions(here):
    with make_grader("own_rewards:by_length") as grader:
        verdicts = grader.grade(["hello", "x" * 20, ""], ["a", "b", "c"])
        assert grader.parses(["anything"]).all()
    assert verdicts == [
        Verdict(0.5, Status.CORRECT, "hello"),
        Verdict(1.0, Status.CORRECT, "x" * 20),
        Verdict(0.0, Status.NO_ANSWER, ""),
    ]


def test_a_method_of_a_class_and_statuses_of_its_own(here):
    with make_grader("own_rewards:Scorer.score") as grader:
        verdicts = grader.grade(["a", "z"], ["abc", "abc"])
    assert verdicts == [Verdict(1.0, Status.CORRECT, "a"), Verdict(0.0, Status.WRONG, "z")]


@pytest.mark.parametrize(
    ("returned", "score", "status"),
    [
        ("[1]", 1.0, Status.CORRECT), ("[True]", 1.0, Status.CORRECT), ("np.array([0.25])", 0.25, Status.CORRECT),
        ("(0,)", 0.0, Status.WRONG), ("[-1.0]", -1.0, Status.WRONG), ("[(0.5, 'correct')]", 0.5, Status.CORRECT),
        ("[(-0.5, 'no_answer')]", -0.5, Status.NO_ANSWER), ("[(0, 'error')]", 0.0, Status.ERROR),
        ("[(0, 'timeout')]", 0.0, Status.TIMEOUT),
    ],
)  # fmt: skip
def test_grades(literal, returned, score, status):
    assert literal.grade(["text"], [returned]) == [Verdict(score, status, "text")]


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("[float('nan')]", "nan; a score is a number from -1 to 1"), ("[np.inf]", "a number from -1 to 1"),
        ("[1.5]", "1.5; a score is a number from -1 to 1"), ("[-2]", "-2; a score is"), ("['1']", "'1'; a score is"),
        ("[None]", "None; a score is"), ("[]", "0 grades for 1 text"), ("[1, 0]", "2 grades for 1 text"),
        ("0.5", "0.5, not a sequence"), ("[(1.0, 'right')]", "a status is one of correct, wrong"),
        ("[(1.0, 'wrong')]", "'correct' goes with a score above 0"),
        ("[(0.0, 'correct')]", "'correct' goes with a score above 0"), ("[(-1.0, 'error')]", "'error' go with 0"),
        ("None", "own_rewards:literal returned None, not a sequence"),
        ("(float(text) for text in texts)", "own_rewards:literal raised ValueError: could not convert line 1"),
        ("1 / 0", "own_rewards:literal raised ZeroDivisionError: division by zero (<string>, line 1)"),
        ("os._exit(1)", "the verifier's process died"), ("bytes(2**31)", "MemoryError"),
    ],
)  # fmt: skip
def test_what_is_no_grade_is_an_error_of_this_response(literal, returned, reason):
    broken, fine = literal.grade(["text", "text"], [returned, "[1]"])
    assert (broken.score, broken.status) == (0.0, Status.ERROR)
    assert all(word in broken.reason for word in reason.split()), broken.reason
    assert fine.status is Status.CORRECT


def test_a_function_that_hangs_is_a_timeout(literal):
    verdicts = literal.grade(["text", "text"], ["time.sleep(60)", "[1]"])
    assert [verdict.status for verdict in verdicts] == [Status.TIMEOUT, Status.CORRECT]


def test_errors_above_the_rate_stop_the_run_and_say_why(here):
    with make_grader("own_rewards:literal", max_failure_rate=0.4) as grader:
        with pytest.raises(VerifierFailure, match=r"own_rewards:literal returned the grade 2; a score"):
            grader.grade(["a", "b"], ["[2]", "[1]"])


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("no_such_module:score", ("no_such_module", "PYTHONPATH")),
        ("broken_rewards:score", ("broken_rewards", "no_such_package")),
        ("own_rewards:scor", ("own_rewards.py", "has no function 'scor'")),
        ("own_rewards:not_a_function", ("has no function 'not_a_function'",)),
    ],
)
def test_a_bad_name_is_an_error_at_the_start(here, function, words):
    with pytest.raises(VerifierFailure) as failure:
        make_grader(function)
    assert f"rewards.function = {function!r}" in str(failure.value)
    assert all(word in str(failure.value) for word in words)


def test_a_bad_name_ends_a_command_with_one_line(here):
    command = [sys.executable, "-m", "gvm_jax", "inspect", f"--config={ROOT}/configs/quickstart.py"]
    done = subprocess.run(
        [*command, "--config.rewards.function=own_rewards:scor"], capture_output=True, text=True, timeout=60,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: rewards.function = 'own_rewards:scor': ") and done.stderr.count("\n") == 1


def test_workers_import_no_jax_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "import sys\ndef score(texts, references):\n    return [float('jax' in sys.modules)]\n"
    (tmp_path / "without_jax.py").write_text(textwrap.dedent(source))
    with make_grader("without_jax:score") as grader:
        assert [verdict.score for verdict in grader.grade(["x"], ["y"])] == [0.0]
