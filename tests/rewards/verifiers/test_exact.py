"""Short answers and choices whose truth a person would see at once."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvm_jax.rewards import Grader, Status, Verdict
from gvm_jax.rewards.answers import final_answer
from gvm_jax.rewards.verifiers.exact import normalise


@pytest.fixture(scope="module")
def grader():
    with Grader("exact", workers=1, deadline_seconds=5.0, memory_mib=256, max_failure_rate=0.0) as grader:
        yield grader


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (r"Hence \boxed{B}.", "B"), (r"\boxed{\text{(B)}}", "B"), (r"\boxed{$B$}", "B"), ("The answer is B", "B"),
        ("The answer is (B).", "B"), ("So the answer is B.\n", "b"), ("The correct answer is: **B**", "B"),
        ("**Answer:** B) Paris", "(B)"), ("Answer: (b) Paris, of course", "B"), ("answer is option B", "B"),
        ("The answer is A, as they say", "A"), ("The answer is (A) f(x) = 2", "A"), ("The answer is D) x, y", "D"),
        ("The answer is I.", "I"), ("The answer is:\n\nB", "B"), ("A and C are wrong. #### B", "B"),
        ("The answer is A. No: the answer is B.", "B"), (r"The answer is \boxed{B}, the answer is A", "B"),
        ("The answer is the Eiffel  Tower.", "Eiffel tower"), ("The answer is “PARIS”!", "paris"),
        ("The answer is Straße", "STRASSE"), ("The answer is ﬁve", "five"), ("The answer is １２", "12"),
        ("#### -3", "\N{MINUS SIGN}3"), ("#### .5", ".5."), ("#### an apple", "apple"), ("The answer is C#.", "c#"),
    ],
)  # fmt: skip
def test_the_same_answer_is_correct(grader, text, reference):
    (verdict,) = grader.grade([text], [reference])
    assert (verdict.score, verdict.status) == (1.0, Status.CORRECT)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("The answer is A", "B"), ("The answer is (A) B", "B"), ("The answer is a dog", "A"),
        ("The answer is A, B", "A"), ("The answer is A) or B)", "A"), ("The answer is A: 3, B: 4", "A"),
        ("The answer is A. B. C. D.", "A"), (r"\boxed{\text{(A) or (B)}}", "A"), (r"\boxed{(A)(B)}", "A"),
        ("The answer is Because", "B"), ("The answer is 15", "1.5"), ("#### 3", "-3"),
        ("#### Paris, France", "Paris"), ("#### vitamin", "vitamin A"), ("The answer is C.", "C#"), ("#### C#", "C"),
        ("#### the", "a"), (r"\boxed{?!}", "B"),
    ],
)  # fmt: skip
def test_another_answer_is_wrong(grader, text, reference):
    (verdict,) = grader.grade([text], [reference])
    assert (verdict.score, verdict.status) == (0.0, Status.WRONG)


@pytest.mark.parametrize(
    ("text", "answer"), [("", None), ("B", None), ("It is B.", None), (r"\boxed{}", ""), ("The answer is:\n ", "")]
)
def test_without_a_final_answer_there_is_none(grader, text, answer):
    assert grader.grade([text], ["B"]) == [Verdict(0.0, Status.NO_ANSWER, answer)]


def test_the_journal_gets_the_answer_as_it_is_written(grader):
    assert grader.grade(["The answer is: The Moon!"], ["moon"]) == [Verdict(1.0, Status.CORRECT, "The Moon!")]


def test_references_of_which_nothing_is_left_are_unusable(grader):
    assert grader.parses(["B", "Paris", "...", "the", "a", "$ $"]).tolist() == [True, True, False, True, True, False]


def test_votes_are_by_meaning(grader):
    pairs = [("(B)", "B."), ("B) Paris", "b"), ("The Moon", "moon!"), ("A", "B"), ("sun", "moon")]
    assert grader.equivalent(pairs) == [True, True, True, False, False]


@given(st.text("aBé1 .-('"))
def test_what_is_around_an_answer_does_not_count(text):
    for around in (f"  {text}\t", f"({text})", f"“{text}”.", text.upper()):
        assert normalise(around) == normalise(text)


@pytest.mark.parametrize("text", ["answer is " * 10**5, "(" * 10**6, " " * 10**6, r"\text{" * 10**5, "####" * 10**5])
def test_long_texts_take_linear_time(grader, text):
    start = time.process_time()
    grader.grade([text, rf"\boxed{{{text}}}", f"#### {text}"], ["B"] * 3)
    assert time.process_time() - start < 5
    assert final_answer(text + r"\boxed{B}") == "B"
