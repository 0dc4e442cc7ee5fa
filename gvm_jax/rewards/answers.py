"""What a response's text says its final answer is, and the plain numbers that need no computer algebra.

Pure functions in linear time: a response is whatever the policy sampled, at any length.
"""

import re
from fractions import Fraction

# The lookbehind is for `\\boxed{5}`, as models write inside code: a pair of backslashes, and still a box.
_BRACES = re.compile(r"\\?(?<=\\)(?P<box>(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)

_FINAL = re.compile(r"\banswer(?: is\b|\*{0,2}:)|####", re.IGNORECASE)

_INTEGER = r"(?:0|[1-9][0-9]*)"
_DECIMAL = re.compile(
    rf"(?P<sign>-?)(?:\\?\$)?(?P<whole>[1-9][0-9]{{0,2}}(?:,[0-9]{{3}})+|{_INTEGER})(?P<part>\.[0-9]+)?"
)
_FRACTION = re.compile(rf"-?{_INTEGER}/[1-9][0-9]*")
_MAX_NUMBER_CHARACTERS = 16  # the digits of a double, so that the verifier's floats hold the number too
_SURE_DIFFERENCE = Fraction(1, 10**5)  # math-verify rounds decimals to 6 places: this much survives it


def extract_boxed(text: str) -> str | None:
    r"""Content of the last complete `\boxed{...}` or `\fbox{...}`, without the white space around it.

    The last is the one that opens last, so of nested boxes the inner one, as in math-verify. Escaped braces
    (`\{`) are text. A box that is never closed does not count, nor does `\boxed 7` without braces, which
    math-verify reads as no box either.

    Args:
        text: a response of any length; the time is linear in it.

    Returns:
        The content, "" for an empty box, None without a complete box.
    """
    open_braces: list[tuple[int, bool]] = []  # where the content starts, and whether the brace is a box's
    start, end = -1, -1
    for match in _BRACES.finditer(text):
        if match["box"] or match["open"]:
            open_braces.append((match.end(), match["box"] is not None))
        elif match["close"] and open_braces:
            content, is_box = open_braces.pop()
            if is_box and content > start:
                start, end = content, match.start()
    return text[start:end].strip() if start >= 0 else None


def final_answer(text: str) -> str | None:
    r"""The last box's content; without a box what follows the last "answer is", "answer:" or "####" in its line.

    The phrases are those of zero-shot chains of thought (arXiv 2205.11916) and of GSM8K (arXiv 2110.14168). Where
    nothing follows in the line, the next one that holds something counts.

    Args:
        text: a response of any length; the time is linear in it.

    Returns:
        The answer without white space around it, "" where nothing follows, None without a box or a phrase.
    """
    boxed = extract_boxed(text)
    if boxed is not None:
        return boxed
    end = max((match.end() for match in _FINAL.finditer(text)), default=None)
    if end is None:
        return None
    after = text[end:].lstrip(": \t\r\n*")
    return after.partition("\n")[0].strip()


def parse_number(text: str) -> Fraction | None:
    r"""Exact value of a plain number: `42`, `-3`, `1,234`, `$18`, `\$0.50`, `-3/4`.

    Only forms that math-verify is certain to read as the same number. Everything else is None and left to the
    verifier: percentages, units, exponents, `.5`, `42.`, `1 234`, leading zeros, more than 16 characters.
    """
    text = text.strip()
    if len(text) > _MAX_NUMBER_CHARACTERS:
        return None
    if match := _DECIMAL.fullmatch(text):
        return Fraction(match["sign"] + match["whole"].replace(",", "") + (match["part"] or ""))
    return Fraction(text) if _FRACTION.fullmatch(text) else None


def compare_numbers(answer: str, gold: str) -> bool | None:
    """Whether two plain numbers are equal to the verifier; None where only the verifier can tell.

    None is for texts that are no plain numbers, and for numbers so close that math-verify's rounding of
    decimals decides (1/3 and 0.3333333 are equal to it).
    """
    value, reference = parse_number(answer), parse_number(gold)
    if value is None or reference is None:
        return None
    if value == reference:
        return True
    return None if abs(value - reference) < _SURE_DIFFERENCE else False
