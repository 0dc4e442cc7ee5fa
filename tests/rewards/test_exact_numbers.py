"""Numbers in every notation against Python's own exact arithmetic."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvm_jax.rewards.canonical import canonical
from gvm_jax.rewards.exact_numbers import (
    MAX_EXPONENT,
    Number,
    parse_number,
    same_number,
    split_number,
    with_plain_numbers,
)


def value(text: str) -> Fraction | None:
    number = parse_number(canonical(text))
    return number and number.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", 42), (" -3 ", -3), ("+3", 3), ("007", 7), ("-0", 0), (".5", Fraction(1, 2)), ("42.", 42),
        ("0.50", Fraction(1, 2)), ("1,234", 1234), ("-1,234,567.5", Fraction(-2469135, 2)), ("1{,}234", 1234),
        (r"1,\!234", 1234), (r"1\,234", 1234), ("1 234 567", 1234567), ("1'234", 1234), (r"\$18.50", Fraction(37, 2)),
        ("-$5", -5), ("18 €", 18), ("3/4", Fraction(3, 4)), ("1/-2", Fraction(-1, 2)),
        (r"-\dfrac{6}{8}", Fraction(-3, 4)), (r"\frac{-1}{2}", Fraction(-1, 2)), (r"\frac12", Fraction(1, 2)),
        ("½", Fraction(1, 2)), ("2½", Fraction(5, 2)), (r"1\frac{4}{5}", Fraction(9, 5)), ("-1 4/5", Fraction(-9, 5)),
        ("3e8", 3 * 10**8), ("5.29E-11", Fraction(529, 10**13)), ("1e-07", Fraction(1, 10**7)),
        (r"4.5\times 10^{33}", 45 * 10**32), (r"4.5 \cdot 10^33", 45 * 10**32), ("4.5 x 10^-3", Fraction(45, 10**4)),
        ("4.5×10⁻³", Fraction(45, 10**4)), ("10^{8}", 10**8), (r"3\mathrm{e}8", 3 * 10**8),
        (r"0.\overline{3}", Fraction(1, 3)), (r"0.1\overline{6}", Fraction(1, 6)), (r"1.\bar 6", Fraction(5, 3)),
        ("0.(142857)", Fraction(1, 7)), ("1010_2", 10), (r"\text{1010}_{2}", 10), ("25_8", 21),
        (r"4210_{\text{five}}", 555), ("A3_{16}", 163), (r"12^{\text{th}}", 12), ("2nd", 2),
        ("1.5 million", 1_500_000), (r"2 \text{ dozen}", 24), ("(-3)", -3), ("(11000)_2", 24), ("3 hundreds", 300),
        ("2 lakh", 200_000), ("１２", 12), ("٣", 3),
    ],
)  # fmt: skip
def test_a_number_is_read_exactly(text, expected):
    assert value(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "-",
            "x",
            "--3",
            "1 2345",
            "12,34",
            "1234,567",
            "1/0",
            "1/2/3",
            "1.2.3",
            "inf",
            "nan",
            "\ud800",
            "1010_1",
            "(1,234)",
            "1, 234",
        ),
        *("19_8", "2k", "a_{16}", "7!", "1/2+1/3", r"1\frac{5}{4}", "3 7", "2e", "e-5", "10^{x}", "2^{10}"),
        f"1e{MAX_EXPONENT + 1}",
    ],
)
def test_what_is_no_number_is_not_read_as_one(text):
    assert value(text) is None


@given(st.integers(-(10**20), 10**20), st.integers(1, 10**9))
def test_integers_and_fractions_are_read_back(numerator, denominator):
    expected = Fraction(numerator, denominator)
    assert value(str(numerator)) == value(f"{numerator:,}") == numerator
    assert value(f"{numerator:,}".replace(",", r"\,")) == value(f"{numerator:_}".replace("_", " ")) == numerator
    assert value(f"{numerator}/{denominator}") == value(rf"\frac{{{numerator}}}{{{denominator}}}") == expected


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_read_as_they_are_printed(number):
    expected = Fraction(repr(number))
    assert value(repr(number)) == value(f"{number!r}".upper()) == expected
    mantissa, _, power = f"{number:.17e}".partition("e")
    assert value(rf"{mantissa} \times 10^{{{int(power)}}}") == Fraction(f"{number:.17e}")


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9))
def test_decimals_are_read_as_they_are_printed(number):
    assert value(f"{number:f}") == Fraction(Decimal(f"{number:f}"))


@given(st.integers(2, 16), st.integers(0, 10**6))
def test_bases_are_read_as_python_reads_them(base, number):
    digits, rest = "", number
    while rest or not digits:
        digits, rest = "0123456789ABCDEF"[rest % base] + digits, rest // base
    assert int(digits, base) == number
    assert value(f"{digits}_{{{base}}}") == number or not any(map(str.isdigit, digits))


@given(st.integers(1, 400), st.integers(1, 400))
def test_repeating_decimals_are_fractions(numerator, denominator):
    whole, rest = divmod(numerator, denominator)
    digits, seen = "", {}
    while rest not in seen:
        seen[rest] = len(digits)
        digits, rest = digits + str(rest * 10 // denominator), rest * 10 % denominator
    start = seen[rest]
    assert value(rf"{whole}.{digits[:start]}\overline{{{digits[start:]}}}") == Fraction(numerator, denominator)


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("1e-7", "2e-7", False), ("0.0000001", "0.0000002", False), ("1.6e-19", "9.1e-31", False),
        ("1.6e-19", r"1.6 \times 10^{-19}", True), ("8e3", "3e8", False), ("0.333", r"\frac13", False),
        ("0.333333", r"\frac13", True), ("0.3333334", r"\frac13", False), (r"\frac13", "0.333333", True),
        ("0.666666", r"\frac23", False), ("0.666667", r"\frac23", True), ("0.000001", "0.0000012", False),
        ("1.66667e-9", r"\frac{1}{600000000}", True), ("1234567", "1234567.4", False), (r"50\%", "0.5", True),
        (r"50\%", "50", True), ("50", r"50\%", True), ("0.5", r"50\%", True), (r"50\%", r"50 \text{ percent}", True),
        (r"50\%", "5000", False), (r"0.5\%", r"50\%", False), (r"33.3333\%", r"\frac13", True),
        ("1010_2", "1010_3", False), ("1010_2", "22_4", True),
    ],
)  # fmt: skip
def test_equality_is_exact_but_for_long_decimals_and_percent(answer, reference, same):
    assert same_number(parse_number(canonical(answer)), parse_number(canonical(reference))) is same


@given(st.fractions(), st.fractions())
def test_exact_numbers_are_the_same_if_they_are_equal(one, other):
    assert same_number(Number(one, False), Number(other, False)) is (one == other)


@given(st.text("0123456789.,-/eE^{}_% \\overline", max_size=24))
def test_any_text_is_taken(text):
    assert isinstance(value(text), Fraction | None)
    with_plain_numbers(text)


def test_numbers_within_mathematics_become_what_math_verify_reads():
    assert with_plain_numbers("(3e8,2.5E-3]") == r"(3\cdot10^{8},2.5\cdot10^{-3}]"
    assert with_plain_numbers(r"x^2+0.\overline{3}") == r"x^2+\frac{1}{3}"
    assert with_plain_numbers(r"1 234+2 345 678x") == "1234+2345678x"
    assert with_plain_numbers("2e+x, e-5, 3exp") == "2e+x, e-5, 3exp"


@pytest.mark.parametrize("text", ["9", "0.", "1_{", "10^{", "1/", "1e", "1 2/", r"\frac{1}{", r"0.\overline{"])
def test_numbers_longer_than_python_reads_are_none(text):
    """A reference answer of a data set is read in the trainer's process."""
    assert split_number(text + "9" * 5000) is None
