"""Grades of answers whose truth is known, and of answers made to break the verifier."""

import time

import numpy as np
import pytest

from gvm_jax.rewards import Grader, Status, Verdict, VerifierFailure

DEADLINE = 1.5
HANG = "9^{9^{9^{9}}}"
RAISES = ("5", "1/0")  # math-verify refuses to compare with an infinite reference


def make_grader(**arguments):
    defaults = {"function": "math", "workers": 1, "deadline_seconds": DEADLINE, "memory_mib": 1024}
    return Grader(**defaults | {"max_failure_rate": 1.0} | arguments)


@pytest.fixture(scope="module")
def grader():
    with make_grader(workers=2) as grader:
        yield grader


def boxed(answer: str) -> str:
    return rf"Thus \(x = 1\), and the answer is \boxed{{{answer}}}."


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("42", "42"),
        ("1,000", "1000"),
        ("1{,}000", "1000"),
        (r"\$18", "18"),
        (r"\frac{1}{2}", "0.5"),
        (r"\frac12", "0.5"),
        ("0.5", r"\dfrac{1}{2}"),
        ("0.333333", r"\frac{1}{3}"),
        (r"2\frac{1}{2}", "2.5"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        ("(x+1)^2", "x^2+2x+1"),
        ("x = 5", "5"),
        (r"\{2, 1\}", r"\{1, 2\}"),
        ("1, 2", r"\{1, 2\}"),
        (r"(3, \frac{\pi}{2})", r"\left(3, \frac{\pi}{2}\right)"),
        (r"[1, \infty)", r"[1,\infty)"),
        (r"\begin{pmatrix} 1 \\ 0.5 \end{pmatrix}", r"\begin{pmatrix} 1 \\ \frac12 \end{pmatrix}"),
        (r"5 \text{ cm}", "5"),
        (r"90^\circ", "90"),
        (r"50\%", "0.5"),
        (r"50\%", "50"),
        (r"\text{east}", "east"),
        (r"\text{(A)}", r"\text{(A)}"),
    ],
)
def test_equivalent_answers_are_correct(grader, answer, gold):
    assert grader.grade([boxed(answer)], [gold]) == [Verdict(1.0, Status.CORRECT, answer)]


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("41", "42"),
        ("-3", "3"),
        (r"\frac{1}{3}", "0.33"),
        ("50", "0.5"),
        ("x + 1", "x + 2"),
        (r"\{1, 2\}", r"\{1, 3\}"),
        ("[1, 2)", "[1, 2]"),
        ("(2, 1)", "(1, 2)"),
        (r"\text{west}", r"\text{east}"),
        ("no idea", "7"),
    ],
)
def test_other_answers_are_wrong(grader, answer, gold):
    assert grader.grade([boxed(answer)], [gold]) == [Verdict(0.0, Status.WRONG, answer)]


@pytest.mark.parametrize(
    ("text", "answer"), [("", None), ("The answer is 42.", None), (r"\boxed{42", None), (r"\boxed{}", "")]
)
def test_without_a_box_that_holds_something_there_is_no_answer(grader, text, answer):
    assert grader.grade([text], ["42"]) == [Verdict(0.0, Status.NO_ANSWER, answer)]


def test_the_last_box_is_graded(grader):
    verdicts = grader.grade([r"\boxed{1} \boxed{\frac42}", r"\boxed{\frac42} \boxed{1}"], ["2", "2"])
    assert [verdict.status for verdict in verdicts] == [Status.CORRECT, Status.WRONG]


def test_hostile_answers_cost_themselves_alone(grader):
    hostile = {
        HANG: Status.TIMEOUT,
        "{" * 10**5 + "1" + "}" * 10**5: Status.TIMEOUT,
        "x" * 10**6: Status.TIMEOUT,
        "5\x00": Status.WRONG,
        "\ud800": Status.WRONG,
        "\\" * 1001: None,
        "\\ud800 \\x00 %s {0}": None,
    }
    texts = [text for answer in hostile for text in (boxed(answer), boxed(r"\frac{4}{2}"))]
    verdicts = grader.grade(texts, [r"\sqrt{4}"] * len(texts))
    for verdict, (answer, status) in zip(verdicts[::2], hostile.items(), strict=True):
        assert verdict.score == 0 and status in (None, verdict.status), (answer[:20], verdict.status)
    assert {verdict.status for verdict in verdicts[1::2]} == {Status.CORRECT}
    assert grader.grade([boxed(r"\frac{3}{2}")], ["1.5"])[0].status is Status.CORRECT


def test_an_exception_of_the_verifier_is_an_error(grader):
    answer, gold = RAISES
    (verdict,) = grader.grade([boxed(answer)], [gold])
    assert verdict == Verdict(0.0, Status.ERROR, answer)
    assert verdict.reason  # for the message of a run that stops for it


def test_submit_does_not_wait_for_other_answers(grader):
    slow = grader.submit(boxed(HANG), r"\sqrt{2}")
    quick = grader.submit(boxed(r"\frac12"), "0.5")
    assert quick.result() == Verdict(1.0, Status.CORRECT, r"\frac12")
    assert not slow.done()
    assert slow.result() == Verdict(0.0, Status.TIMEOUT, HANG)
    assert slow.done()


def test_equal_pairs_are_verified_once(grader):
    start = time.monotonic()
    verdicts = grader.grade([boxed(HANG)] * 100, [r"\sqrt{2}"] * 100)
    assert [verdict.status for verdict in verdicts] == [Status.TIMEOUT] * 100
    assert time.monotonic() - start < 20 * DEADLINE  # one by one on two workers: 50 deadlines


def test_plain_numbers_need_no_worker():
    with make_grader(max_failure_rate=0.0) as grader:
        pass
    verdicts = grader.grade([boxed("1,234"), boxed("0.50"), boxed("4")], ["1234", "1/2", "5"])
    assert [verdict.score for verdict in verdicts] == [1.0, 1.0, 0.0]
    with pytest.raises(RuntimeError, match="closed"):
        grader.grade([boxed(r"\frac12")], ["0.5"])


def test_more_failures_than_allowed_stop_the_run():
    failing, gold = RAISES
    with make_grader(max_failure_rate=0.5) as grader:
        allowed = grader.grade([boxed(failing), boxed("5")], [gold, "5"])
        assert [verdict.status for verdict in allowed] == [Status.ERROR, Status.CORRECT]
        with pytest.raises(VerifierFailure) as failure:
            grader.grade([boxed("\ud800" * 1000), boxed(failing), boxed(HANG)], [r"\sqrt{2}", gold, r"\sqrt{2}"])
        assert grader.grade([], []) == []
    message = str(failure.value)
    for part in ("2 of 3", "1 errors", "1 timeouts", "0.667", "rewards.max_failure_rate = 0.5", "'5'"):
        assert part in message
    assert len(message) < 800
    message.encode()  # printable whatever the answer was


def test_parses_tells_which_references_the_verifier_reads(grader):
    golds = ["42", r"\frac12", r"\text{east}", "(1, 2]", "", r"\frac{1}{", "x" * 10**6]
    parses = grader.parses(golds)
    assert parses.dtype == np.bool_
    np.testing.assert_array_equal(parses, [True, True, True, True, False, False, False])
    assert grader.parses([]).shape == (0,)


def test_words_are_not_read_as_products_of_their_letters(grader):
    words = [
        "Paris",
        "no number here, sorry about that",
        "there were 2 of them, and with 3 more from somewhere that makes five apples",
    ]
    assert not grader.parses(words).any()
    mathematics = [
        r"\text{Tuesday}",
        "12 cubic meters",
        r"\sin x",
        "sqrt(2)",
        "ABCD",
        "xyz",
        r"x \in \mathbb{R}",
        "arctan(y)",
    ]
    assert grader.parses(mathematics).all()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"function": "maths"}, "rewards.function = 'maths': must be one of exact, math, python_tests, or"),
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
        grader.grade([boxed("1")], ["1", "2"])
