"""Extraction of boxed answers against brute force, plain numbers against exact arithmetic and math-verify."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_jax.rewards import extract_boxed, parse_number
from gvm_jax.rewards.answers import compare_numbers
from gvm_jax.rewards.domains import math


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ x = \sqrt{ \frac{a}{b} } }", r"x = \sqrt{ \frac{a}{b} }"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\\boxed{5}", "5"),
        ("\\boxed{\n5\n}", "5"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\{ x \right.}", r"\{ x \right."),
        (r"\boxed{a \\{b} c}", r"a \\{b} c"),
        (r"\boxed{8} and then \boxed{9", "8"),
        (r"} {\boxed{5}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{5} not \boxed{ }", ""),
        (r"\boxed 7", None),
        (r"\boxed{7", None),
        (r"\boxed{7\}", None),
        (r"boxed{7}", None),
        (r"\unboxed{7}", None),
        ("42", None),
        ("", None),
    ],
)
def test_extract_boxed_gives_the_content_of_the_last_complete_box(text, content):
    assert extract_boxed(text) == content


def brute_force_boxed(text: str) -> str | None:
    """Tries every box from the last on, and counts braces after each afresh."""
    escaped, brace = False, []
    for character in text:
        brace.append(0 if escaped else {"{": 1, "}": -1}.get(character, 0))
        escaped = character == "\\" and not escaped
    for start in reversed(range(len(text))):
        for command in (r"\boxed{", r"\fbox{"):
            content = start + len(command)
            if text.startswith(command, start):
                depth = 1
                for end in range(content, len(text)):
                    depth += brace[end]
                    if depth == 0:
                        return text[content:end].strip()
    return None


@given(st.lists(st.sampled_from([r"\boxed{", r"\fbox{", "{", "}", r"\{", r"\}", "\\\\", "x", " "]), max_size=24))
@settings(max_examples=500, deadline=None)
def test_extract_boxed_agrees_with_brute_force(pieces):
    text = "".join(pieces)
    assert extract_boxed(text) == brute_force_boxed(text)


@given(st.text(), st.recursive(st.text("ab1 ,\\\\^_", max_size=4), lambda inner: inner.map("{{{}}}".format)))
@settings(deadline=None)
def test_extract_boxed_ignores_everything_around_the_box(around, content):
    content = content.replace("\\", "")
    around = around.replace("box", "").rstrip("\\")
    assert extract_boxed(rf"{around} \boxed{{{content}}} {around.replace('{', '')}") == content.strip()


@pytest.mark.parametrize(
    "text",
    [
        "\\" * 10**6,
        "{" * 10**6,
        "}" * 10**6,
        r"\boxed{" * 150_000,
        r"\boxed" + " " * 10**6,
        r"\boxed " * 150_000,
        "x" * 10**6,
    ],
    ids=["backslashes", "open", "close", "boxes", "spaces", "braceless", "text"],
)
def test_extract_boxed_of_a_megabyte_takes_linear_time(text):
    start = time.process_time()
    assert extract_boxed(text) is None
    assert time.process_time() - start < 10  # about 1 s; quadratic time is hours


def test_extract_boxed_matches_a_hundred_thousand_nested_braces():
    content = "{" * 10**5 + "1" + "}" * 10**5
    assert extract_boxed(rf"\boxed{{{content}}}") == content


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        (" -3 ", -3),
        ("0", 0),
        ("1,234", 1234),
        ("-1,234,567.5", Fraction(-2469135, 2)),
        ("$18", 18),
        (r"\$18.50", Fraction(37, 2)),
        ("-$5", -5),
        ("0.50", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("-6/8", Fraction(-3, 4)),
    ],
)
def test_parse_number_is_exact(text, value):
    assert parse_number(text) == value


NOT_PLAIN = ["", "-", "x", "5%", "5 cm", "1e5", ".5", "42.", "1 234", "12,34", "1234,567", "0,123", "1,234/5"]
NOT_PLAIN += ["1/0", "1/-2", "007", "+3", "--3", "1/2/3", "1_000", "٣", "inf", "nan", "\ud800"]
TOO_LONG = ["9" * 17, "9" * 10**6, "1/" + "9" * 10**6]


@pytest.mark.parametrize("text", NOT_PLAIN + TOO_LONG, ids=lambda text: ascii(text[:10]))
def test_parse_number_leaves_what_is_not_plain_to_the_verifier(text):
    assert parse_number(text) is None


@given(st.integers(-(10**7), 10**7), st.integers(1, 10**5))
def test_parse_number_reads_back_what_python_writes(numerator, denominator):
    assert parse_number(str(numerator)) == numerator
    assert parse_number(f"{numerator:,}") == numerator
    assert parse_number(f"{numerator}.{denominator:05}"[:16]) == Fraction(f"{numerator}.{denominator:05}"[:16])
    assert parse_number(f"{numerator}/{denominator}") == Fraction(numerator, denominator)


@given(st.text("0123456789.,-/$\\ ", max_size=20))
def test_parse_number_takes_any_text(text):
    assert isinstance(parse_number(text), Fraction | None)


NUMBERS = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.integers(-(10**6), 10**6).map("{:,}".format),
    st.integers(0, 10**6).map("${:,}".format),
    st.decimals(-2000, 2000, allow_nan=False, places=2).map("{:,}".format),
    st.decimals(-2, 2, allow_nan=False, places=7).map("{:f}".format),
    st.tuples(st.integers(-30, 30), st.integers(1, 30)).map("{0[0]}/{0[1]}".format),
)


@st.composite
def number_pairs(draw):
    """Unrelated numbers, and one number written in two ways, rounded or off by a little."""
    first = draw(NUMBERS)
    value = parse_number(first)
    places = draw(st.integers(0, 8))
    rewritten = [first, f"{float(value):.{places}f}", f"{float(value):.7f}", f"{float(value) + 1e-6:.7f}"]
    return first, draw(st.one_of(NUMBERS, st.sampled_from(rewritten)))


@given(number_pairs())
@settings(max_examples=300, deadline=None)
def test_compare_numbers_decides_only_as_math_verify_does(pair):
    known = compare_numbers(*pair)
    assert known is None or known == math.equivalent(*pair)


def test_compare_numbers_leaves_rounding_to_the_verifier():
    assert compare_numbers("0.3333333", "1/3") is None
    assert compare_numbers("0.333", "1/3") is False
    assert compare_numbers("0.50", "1/2") is True
    assert compare_numbers("x", "1") is None
