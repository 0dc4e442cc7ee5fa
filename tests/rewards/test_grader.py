"""Answers that break the verifier cost themselves alone, and too many of them the run."""

import time

import numpy as np
import psutil
import pytest

from gvm_jax.rewards import Grader, Status, Verdict, VerifierFailure, grade

DEADLINE = 1.5
SOURCE = """
import os
import time

def score(texts, references):
    {"hang": lambda: time.sleep(60), "raise": lambda: 1 / 0, "die": lambda: os._exit(1)}.get(texts[0], int)()
    return [float(text == reference) for text, reference in zip(texts, references, strict=True)]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripted")
    (folder / "scripted_reward.py").write_text(SOURCE)
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def make_grader(**arguments):
    defaults = {"function": "scripted_reward:score", "workers": 1, "deadline_seconds": DEADLINE, "memory_mib": 1024}
    return Grader(**defaults | {"max_failure_rate": 1.0} | arguments)


@pytest.fixture(scope="module")
def grader(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with make_grader(workers=2) as grader:
            yield grader


def test_what_fails_costs_itself_alone(grader):
    failing = {"hang": Status.TIMEOUT, "raise": Status.ERROR, "die": Status.ERROR}
    texts = [text for answer in failing for text in (answer, "7")]
    verdicts = grader.grade(texts, ["7"] * len(texts))
    assert verdicts[::2] == [Verdict(0.0, status, text) for text, status in failing.items()]
    assert set(verdicts[1::2]) == {Verdict(1.0, Status.CORRECT, "7")}
    assert "ZeroDivisionError" in verdicts[2].reason  # for the message of a run that stops for it


def test_submit_does_not_wait_for_other_answers(grader):
    slow = grader.submit("hang", "7")
    quick = grader.submit("7", "7")
    assert quick.result() == Verdict(1.0, Status.CORRECT, "7")
    assert not slow.done()
    assert slow.result() == Verdict(0.0, Status.TIMEOUT, "hang")
    assert slow.done()


def test_equal_pairs_are_verified_once(grader):
    start = time.monotonic()
    verdicts = grader.grade(["hang"] * 100, ["7"] * 100)
    assert [verdict.status for verdict in verdicts] == [Status.TIMEOUT] * 100
    assert time.monotonic() - start < 20 * DEADLINE  # one by one on two workers: 50 deadlines


def test_what_the_texts_tell_needs_no_worker():
    with make_grader(function="math", max_failure_rate=0.0) as grader:
        pass
    verdicts = grader.grade([r"\boxed{1,234}", r"\boxed{0.50}", r"\boxed{4}"], ["1234", "1/2", "5"])
    assert [verdict.score for verdict in verdicts] == [1.0, 1.0, 0.0]
    assert grader.parses(["7", "1/2"]).all()
    with pytest.raises(RuntimeError, match="closed"):
        grader.grade([r"\boxed{\sqrt{8}}"], [r"2\sqrt{2}"])


def test_more_failures_than_allowed_stop_the_run():
    with make_grader(max_failure_rate=0.5) as grader:
        allowed = grader.grade(["raise", "7"], ["7", "7"])
        assert [verdict.status for verdict in allowed] == [Status.ERROR, Status.CORRECT]
        with pytest.raises(VerifierFailure) as failure:
            grader.grade(["\ud800" * 1000, "raise", "hang"], ["7"] * 3)
        assert grader.grade([], []) == []
    message = str(failure.value)
    for part in ("2 of 3", "1 errors", "1 timeouts", "0.667", "rewards.max_failure_rate = 0.5", "'raise'"):
        assert part in message
    assert len(message) < 800
    message.encode()  # printable whatever the answer was


def test_parses_tells_which_references_the_verifier_reads():
    with make_grader(function="math", workers=2) as grader:
        parses = grader.parses(["42", r"\frac12", r"\text{east}", "(1, 2]", "", r"\frac{1}{", "x" * 10**6])
        assert parses.dtype == np.bool_
        np.testing.assert_array_equal(parses, [True, True, True, True, False, False, False])
        assert grader.parses([]).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"function": "maths"}, "function = 'maths': must be one of exact, math, math_verify, python_tests, or"),
        ({"workers": -1}, "rewards.workers = -1"),
        ({"deadline_seconds": 0.0}, "rewards.deadline_seconds = 0.0"),
        ({"memory_mib": 0}, "rewards.memory_mib = 0"),
        ({"max_failure_rate": 1.5}, "rewards.max_failure_rate = 1.5"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, field):
    with pytest.raises(ValueError, match=field):
        make_grader(**arguments)


def test_texts_and_references_must_pair_up(grader):
    with pytest.raises(ValueError):
        grader.grade(["1"], ["1", "2"])


def test_grade_needs_no_grader_and_leaves_no_process():
    before = set(psutil.Process().children(recursive=True))
    verdicts = grade(["7", "8", "die"], ["7", "7", "7"], function="scripted_reward:score", workers=1)
    assert [verdict.status for verdict in verdicts] == [Status.CORRECT, Status.WRONG, Status.ERROR]
    assert grade([r"so \boxed{\sqrt{8}}"], [r"2\sqrt{2}"], workers=1)[0].score == 1.0
    assert set(psutil.Process().children(recursive=True)) <= before
