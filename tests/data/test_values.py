r"""What a column may hold, and the text that comes of it."""

import json
import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_jax.data.values import MISSING, BadRowError, answer_text, number_text, problem_text

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "1+1?"}]
SOLVED = [*CHAT, {"role": "assistant", "content": " 2 "}]


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" 1+1? ", " 1+1? "), (CHAT, "1+1?"), (SOLVED, "1+1?"), (json.dumps(CHAT), "1+1?"),
        (json.dumps(CHAT, indent=1), "1+1?"), ([{"role": "user", "content": parts("1", "+1?")}], "1+1?"),
        (json.dumps([{"role": "user", "content": parts("1+1?")}]), "1+1?"), (parts("1+1?"), "1+1?"),
        ("[1, 2] is a list", "[1, 2] is a list"), ('[{"x": 1}] is JSON', '[{"x": 1}] is JSON'),
    ],
)  # fmt: skip
def test_a_problem_is_a_text_or_what_the_user_said_last(value, text):
    assert problem_text(value) == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "is null"), (MISSING, "is missing"), ("  ", "is empty"), (7, "is no text but a number"),
        (True, "is no text but true or false"), ([], "is no text but a list"), (["1+1?"], "is no text but a list"),
        (SOLVED[2:], "is a chat without a message of the role 'user'"), ([{"role": "user"}], "is null"),
        (str(CHAT), "looks like a chat, but it is no JSON"),
        (json.dumps(CHAT)[:-2], "looks like a chat, but it is no JSON"),
        ('[{"role":' + '[{"role":' * 100_000, "looks like a chat, but it is no JSON"),
        ([{"role": "user", "content": [*parts("see"), {"type": "image"}]}], "has parts that are no text: image"),
        ("1\ud83d1", "holds a lone surrogate"),
    ],
)  # fmt: skip
def test_what_is_no_problem_is_told_apart(value, reason):
    with pytest.raises(BadRowError, match=f"^the problem {reason}"):
        problem_text(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (72, "72"), (72.0, "72"), (-0.5, "-0.5"), (-0.0, "0"), (1e22, "1" + 22 * "0"),
        (6.02e23, "602" + 21 * "0"), (1e-07, "0.0000001"), (5.29e-11, "0.0000000000529"), (1e-50, "1e-50"),
        (Decimal("2.50"), "2.5"), (Decimal("0.1234567890123456789012345"), "0.1234567890123456789012345"),
        (Decimal("1e999999999"), "1e+999999999"),
        (12345678901234567890123456789012345678901234567890, "12345678901234567890123456789012345678901234567890"),
        (True, "true"), (False, "false"), ("72.0", "72.0"), (" x \n", "x"), (["1/2", "0.5"], "1/2"), ([3.0], "3"),
        (SOLVED, "2"), (json.dumps(SOLVED), "2"), (parts("1", "/2"), "1/2"),
        ([{"role": "assistant", "content": parts("2")}], "2"),
    ],
)  # fmt: skip
def test_answers_become_plain_text(value, text):
    assert answer_text(value) == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "is null"), (MISSING, "is missing"), ("", "is empty"), ([], "is empty"), ([None], "is null"),
        ({"a": 1}, "is neither text nor number but an object"), ([["1"]], "is neither text nor number but a list"),
        (math.nan, "is not a finite number"), (-math.inf, "is not a finite number"),
        (CHAT, "is a chat whose last message is not of the role 'assistant'"),
        (str(SOLVED), "looks like a chat, but it is no JSON"), ("\udc80 6", "holds a lone surrogate"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_told_apart(value, reason):
    with pytest.raises(BadRowError, match=f"^the answer {reason}"):
        answer_text(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_numbers_text_is_exactly_the_number(value):
    text = number_text(value)
    assert Fraction(text) == Fraction(repr(value))
    assert "e" not in text or not 1e-40 < abs(value) < 1e40
