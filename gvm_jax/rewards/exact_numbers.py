r"""Numbers in every notation, read and compared exactly.

Read are integers, decimals and fractions with or without separated thousands, `3.2e5` and `3.2 \times 10^5`, mixed
numbers, repeating decimals, percentages, number bases (`1010_2`), ordinals and magnitudes (2 million), with a unit or a
currency after them. In a text that `canonical.canonical` wrote, a number is this whole text or no number at all.
"""

import re
from fractions import Fraction
from typing import NamedTuple

MAX_CHARACTERS = 4000  # of a text with a number: Python raises for integers of more than 4,300 digits
MAX_EXPONENT = 10_000  # of ten
MIN_ROUNDED_PLACES = 6  # math-verify's too: 0.333333 is 1/3, 0.333 is not

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d{1,3}(?:'\d{3})+|\d+)"
_TEN = r"10\^(?:\{(?P<power>[+-]?\d+)\}|(?P<bare_power>[+-]?\d+))"
_EXPONENT = rf" ?(?:(?:[eE]|\\text\{{[eE]\}})(?P<e>[+-]?\d+)|(?:\\times|\\cdot|\*|[xX]) ?{_TEN})"
_REPEATED = r"\\(?:overline|bar|dot)(?:\{(?P<bar>\d+)\}| ?(?P<bare_bar>\d))|(?<=0\.)(?:\((?P<round>\d+)\))"
_DECIMAL = re.compile(rf"(?P<whole>{_DIGITS})?(?:\.(?P<part>\d*)(?:{_REPEATED})?)?(?:{_EXPONENT})?")
_SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d+(?:\.\d*)?|\.\d+)(?:[eE]|\\text\{[eE]\})([+-]?\d+)(?![\w.])")
_GROUPED = re.compile(r"(?<![\d.,] )(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d ])")
_REPEATING = re.compile(r"\d*\.\d*\\(?:overline|bar|dot)(?:\{\d+\}| ?\d)")
_DEGREES = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)(?:\^\{?\d\}?)?) ?(?:\((\d+(?:\.\d+)?)\^\\circ ?\)|(\d+(?:\.\d+)?)\^\\circ ?)"
)
_FACTOR = re.compile(r"(?<=\d)\((\\frac\{[^{}]*\}\{[^{}]*\})\)")
_POWER_OF_TEN = re.compile(_TEN)
_QUOTIENT = re.compile(rf"({_DIGITS}(?:\.\d+)?)/(-?{_DIGITS}(?:\.\d+)?)")
_FRACTION = re.compile(rf"\\frac\{{([+-]?{_DIGITS}(?:\.\d+)?)\}}\{{([+-]?{_DIGITS}(?:\.\d+)?)\}}")
_MIXED = re.compile(rf"({_DIGITS})(?: (\d+)/(\d+)|\\frac\{{(\d+)\}}\{{(\d+)\}})")
_BASE_NAMES = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
_BASE = re.compile(
    rf"\(?([0-9A-Z]*\d[0-9A-Z]*)\)?_(?:\{{\(?(\d+)\)?\}}|(\d+)|\{{?\\text\{{({'|'.join(_BASE_NAMES)})\}}\}}?)"
)

_ORDINAL = re.compile(r"\^?\{?(?:\\text\{(?:st|nd|rd|th)\}|(?:st|nd|rd|th))\}?")
_PERCENT = re.compile(r"%|\\text\{(?:percent|percentage|pct|%)\}| ?(?:percent|percentage|pct)\b")
_TIMES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "lakh": 10**5,
}
_MAGNITUDE = re.compile(rf"(?: |\\text\{{)({'|'.join(_TIMES)})s?(?![a-zA-Z])")


class Number(NamedTuple):
    """A number as it was written."""

    value: Fraction  # 50 for 50 %
    percent: bool
    places: int | None = None  # of a decimal, digits after the point; None = written exactly
    figures: int = 0  # of a decimal, digits from the first that is not 0


def split_number(text: str) -> tuple[Number, str] | None:
    """The number that a canonical text starts with, and the rest: a unit or something else.

    Returns:
        None if the text starts with no number, is longer than `MAX_CHARACTERS`, or has an exponent of ten beyond
        `MAX_EXPONENT`.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    sign = re.match(r"[+-]?", text)[0]
    rest = text[len(sign) :]
    if sign == "" and not _BASE.match(rest) and (inner := re.match(r"\(([^(),]*)\)", rest)):  # (1,234) is a point
        within = split_number(inner[1])
        return (within[0], rest[inner.end() :]) if within and not within[1] else None
    found = _unsigned(rest)
    if found is None:
        return None
    number, rest = found
    if sign == "-":
        number = number._replace(value=-number.value)
    if number.value.denominator == 1 and number.places is None and (ordinal := _ORDINAL.match(rest)):
        if not rest[ordinal.end() : ordinal.end() + 1].isalpha():
            rest = rest[ordinal.end() :]
    if magnitude := _MAGNITUDE.match(rest):
        number = number._replace(value=number.value * _TIMES[magnitude[1]], places=None)
        rest = rest[magnitude.end() :]
        if magnitude[0].startswith("\\text"):
            rest = rest[1:] if rest.startswith("}") else r"\text{" + rest.lstrip()
    if percent := _PERCENT.match(rest):
        number = number._replace(percent=True)
        rest = rest[percent.end() :]
    return number, rest


def parse_number(text: str) -> Number | None:
    """The number that a canonical text is, without anything after it."""
    found = split_number(text)
    return found[0] if found and not found[1] else None


def same_number(answer: Number, reference: Number) -> bool:
    """Whether two numbers are equal.

    Equal are exact values, and a decimal and a value that it rounds, if it has `MIN_ROUNDED_PLACES` places and as many
    significant figures. Of one percentage and one plain number either 50 or 0.5 may be meant by 50 %.
    """
    if answer.percent == reference.percent:
        return _close(answer, reference)
    return any(_close(one, other) for one in _readings(answer) for other in _readings(reference))


def with_plain_numbers(text: str) -> str:
    r"""A canonical text with numbers as math-verify reads them.

    `3e8` becomes `3\cdot10^{8}`, `0.\overline{3}` a fraction, `\cos 60^\circ` a cosine of radians, and `2(\frac12)`,
    which is to it a mixed number, a product.
    """
    text = _SCIENTIFIC.sub(r"\1\\cdot10^{\2}", text)
    text = _GROUPED.sub(lambda match: match[0].replace(" ", ""), text)
    text = _FACTOR.sub(r"\\cdot\1", _DEGREES.sub(r"\1(\\frac{\2\3\\pi}{180})", text))
    return _REPEATING.sub(
        lambda match: rf"\frac{{{(value := parse_number(match[0]).value).numerator}}}{{{value.denominator}}}", text
    )


def _readings(number: Number) -> list[Number]:
    if not number.percent:
        return [number]
    places = None if number.places is None else number.places + 2
    return [number, number._replace(value=number.value / 100, places=places)]


def _close(one: Number, other: Number) -> bool:
    return one.value == other.value or _rounds(one, other) or _rounds(other, one)


def _rounds(decimal: Number, exact: Number) -> bool:
    if decimal.places is None or min(decimal.places, decimal.figures) < MIN_ROUNDED_PLACES:
        return False
    return abs(decimal.value - exact.value) * 2 * 10**decimal.places <= 1


def _unsigned(text: str) -> tuple[Number, str] | None:
    """A number without a sign at the start of a text, and the rest."""
    pattern, read = next((pattern, read) for pattern, read in _NOTATIONS if pattern.match(text))
    match = pattern.match(text)
    number = read(match)
    return (number, text[match.end() :]) if number else None


def _in_base(match: re.Match) -> Number | None:
    base = int(match[2] or match[3] or _BASE_NAMES.index(match[4]) + 2)
    try:
        return Number(Fraction(int(match[1], base)), False)
    except ValueError:  # a digit that the base lacks, or no base
        return None


def _mixed(match: re.Match) -> Number | None:
    numerator, denominator = int(match[2] or match[4]), int(match[3] or match[5])
    return Number(_plain(match[1]) + Fraction(numerator, denominator), False) if numerator < denominator else None


def _quotient(match: re.Match) -> Number | None:
    numerator, denominator = _plain(match[1]), _plain(match[2])
    return Number(numerator / denominator, False) if denominator else None


def _power_of_ten(match: re.Match) -> Number | None:
    power = int(match["power"] or match["bare_power"])
    return Number(Fraction(10) ** power, False) if abs(power) <= MAX_EXPONENT else None


def _decimal(match: re.Match) -> Number | None:
    whole, part = re.sub(r"[ ,']", "", match["whole"] or ""), match["part"] or ""
    power = int(match["e"] or match["power"] or match["bare_power"] or 0)
    if not (whole or part) or abs(power) > MAX_EXPONENT:
        return None
    value = Fraction(int(whole + part), 10 ** len(part))
    repeated = match["bar"] or match["bare_bar"] or match["round"]
    if repeated:
        value += Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(part))
    places = None if repeated or not part else len(part) - power
    return Number(value * Fraction(10) ** power, False, places, figures=len((whole + part).lstrip("0")))


def _plain(text: str) -> Fraction:
    return Fraction(re.sub(r"[ ,']", "", text))


# The first that matches reads the number; a decimal matches every text.
_NOTATIONS = (
    (_BASE, _in_base),
    (_MIXED, _mixed),
    (_QUOTIENT, _quotient),
    (_FRACTION, _quotient),
    (_POWER_OF_TEN, _power_of_ten),
    (_DECIMAL, _decimal),
)
