r"""Mathematics: the last box of a response. Numbers are compared exactly, everything else by math-verify.

An answer passes three stages, each of which may decide:

1. text (`decide`): equal texts in canonical spelling, numbers in any notation, words, and texts that are no answer;
2. size (`size_limits.is_too_large`): an answer that would keep computer algebra busy for too long is rejected;
3. math-verify (`equivalent`), without its rounding of numbers to six places: 10^-7 is not 2 * 10^-7.
"""

import re

import sympy
from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.evalf import EvalfMixin
from sympy.logic.boolalg import Boolean

from gvm_jax.rewards.answers import extract_boxed
from gvm_jax.rewards.canonical import canonical, words
from gvm_jax.rewards.exact_numbers import Number, same_number, split_number, with_plain_numbers
from gvm_jax.rewards.size_limits import is_too_large
from gvm_jax.rewards.units import STATEMENTS, is_unit
from gvm_jax.rewards.verdicts import ACCEPTED, REJECTED, Grade
from gvm_jax.rewards.verifiers.exact import same_text
from gvm_jax.rewards.verifiers.math_verify_alone import quiet_math_verify
from gvm_jax.rewards.verifiers.verifier import Verifier

MAX_CHARACTERS = 2000  # of an answer, beyond its reference's
MOST_WORDS = 6  # of a reference with a number: "12 cubic meters per second"
RELATIVE_DIFFERENCE = 1e-6  # of numbers that math-verify takes for equal
_FUNCTIONS = r"\b(?:(?:a|arc)?(?:sin|cos|tan|cot|sec|csc)h?|sqrt|infinity|infty|floor|ceil)\b"
_NO_WORDS = re.compile(rf"\\(?:text\w*|mathrm|mbox)\s*\{{[^{{}}]*\}}|\\[a-zA-Z]+|{_FUNCTIONS}")
_WORD = re.compile(r"[A-Za-z]*[a-z]{4,}|[A-Z][a-z]{2,}")
_PERCENT_OR_NOT = (1, 100, sympy.Rational(1, 100))
_LATEX = (LatexExtractionConfig(),)
_PROSE = re.compile(r"\\text\{[^{}]*[A-Za-z][^{}]*\}")
_TEXT = re.compile(r"\\text\{[^{}]*\}")
# What is said to be equal to a number: x, f(2), a_{10}, \angle ABC, \text{area}.
_NAME = re.compile(rf"{_TEXT.pattern}|\\angle ?[A-Z]+|[a-zA-Z]+'*(?:_(?:\w|\{{\w+\}}))?(?:\([^()]*\))?")
_LETTER = re.compile(
    rf"{_TEXT.pattern}|\\(?!(?:gamma|delta|theta|lambda|xi|pi|sigma|phi|psi|omega)(?![a-z]))[a-z]+|(\\[a-z]+|[a-z])",
    re.I,
)
_GREEK = [
    rf"\{name} " for name in ("alpha", "beta", "epsilon", "zeta", "eta", "kappa", "mu", "nu", "rho", "tau", "chi")
]
_CHOICE = re.compile(r"\(?[A-J]\)?")
_LAST_LETTERS = re.compile(r"(?<=[\d} ])(?![ei]$)([a-zA-Z]{1,2})$")
_BOTH = re.compile(r",?(?:\\text\{(?:and|or)\}|(?<=[\d)}\]]) (?:and|or) (?=[\d(\\\[-]))")
_OR = re.compile(r",?(?:\\text\{or\}| or )")
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|lt|gt)(?![a-zA-Z])")
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")
_MEMBER = re.compile(r"[a-zA-Z]\\in(?![a-zA-Z]) ?(?=[\[(\\])")


class Mathematics(Verifier):
    r"""Answers are the content of the last `\boxed{...}`."""

    def answer(self, text: str) -> str | None:
        return extract_boxed(text)

    def known(self, answer: str, reference: str) -> bool | None:
        return decide(answer, reference)

    def start(self) -> None:
        """Tries math-verify: with a broken parser it would reject every answer. Raises RuntimeError then."""
        quiet_math_verify()
        if not equivalent(r"\sqrt{8}", r"2\sqrt{2}"):
            raise RuntimeError(r"math-verify does not accept \sqrt{8} for 2\sqrt{2}: reinstall math-verify, antlr4")

    def check(self, answer: str, reference: str) -> Grade:
        return ACCEPTED if self.equivalent(answer, reference) else REJECTED

    def surely_parses(self, reference: str) -> bool:
        return number_with_unit(canonical(reference), attached=False) is not None

    def parses(self, reference: str) -> bool:
        """Whether the reference is mathematics, rather than words, and equals itself.

        Bare words are not, though math-verify reads them as products of their letters: "Paris" would be "pairs".
        """
        if _is_prose(reference):
            return False
        text = canonical(reference)
        return _PROSE.fullmatch(text) is not None or (text != "" and equivalent(text, text))

    def equivalent(self, answer: str, leader: str) -> bool:
        known = decide(answer, leader)
        return equivalent(canonical(answer), canonical(leader)) if known is None else known


def decide(answer: str, reference: str) -> bool | None:
    """Whether an answer is right, as far as the texts alone tell; None = it takes computer algebra."""
    if len(answer) > MAX_CHARACTERS and len(answer := " ".join(answer.split())) > MAX_CHARACTERS + len(reference):
        return False
    given, wanted = canonical(answer), canonical(reference)
    if given.replace(", ", ",") == wanted.replace(", ", ","):
        return given != ""
    if not given or is_too_large(given, wanted):
        return False
    if _PROSE.fullmatch(wanted):
        return same_text(given, wanted)
    if _CHOICE.fullmatch(wanted) and same_text(given, wanted):
        return True
    if _is_statement(given, wanted):
        return False
    number = number_with_unit(wanted, attached=False)
    sides = _EQUALS.split(given)
    if number is None or not sides[-1]:
        return None
    numbers = [number_with_unit(side) for side in sides if number_with_unit(side) or not _NAME.fullmatch(side)]
    if not numbers or None in numbers:
        return False if _is_number_and_more(sides[-1]) else None
    return all(same_number(side, numbers[-1]) for side in numbers[:-1]) and same_number(numbers[-1], number)


def number_with_unit(text: str, attached: bool = True) -> Number | None:
    """The number, with or without a unit, that a canonical text is; None if it is no number.

    Letters right after the number are a unit only if `attached`, as in `units.is_unit`.
    """
    if _TEXT.fullmatch(text):  # \text{25 dollars}
        text = text[len(r"\text{") : -1]
    found = split_number(text)
    return found[0] if found and is_unit(found[1], attached) else None


def equivalent(answer: str, reference: str) -> bool:
    r"""Whether math-verify accepts one canonical text for another, and no number of it differs.

    Its own timeouts are off, because the process has the deadline. Relations are compared with sets (x > 2 with
    (2, infinity)). In an answer that is a chain of equations, all sides that are numbers must be equal.

    Raises:
        Exception: whatever the reading or the comparison raised.
    """
    answer, reference = _with_capitals_apart(answer, reference)
    answer, reference = _with_last_variable(answer, reference), _with_last_variable(reference)
    given, wanted = _read(answer), _read(reference)
    sides = _EQUALS.split(answer)
    if len(sides) > 1 and "," not in answer:
        values = [value for side in sides for value in _read(side) if isinstance(value, sympy.Expr)]
        constants = [value for value in values if value.is_number]
        if constants and any(not _accepts(value, constants[-1]) for value in constants[:-1]):
            return False
    return any(_accepts(one, other) for one in given for other in wanted)


def _accepts(given: sympy.Basic, wanted: sympy.Basic) -> bool:
    if _differs(given, wanted):
        return False
    return verify(wanted, given, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)


def _differs(one: sympy.Basic, other: sympy.Basic) -> bool:
    """Whether two expressions have other variables, or numbers at the same place that are not the same.

    It goes before math-verify, which rounds numbers to six places, takes infinity for any number, and may try for a
    long time to simplify the difference of what has nothing in common.
    """
    parts = [_parts(one), _parts(other)]
    if parts[0] and len(parts[0]) == len(parts[1]):
        return any(map(_differs, *parts))
    if not all(isinstance(part, sympy.Expr) and not isinstance(part, sympy.Symbol) for part in (one, other)):
        return False
    if one.free_symbols or other.free_symbols:
        return {symbol.name for symbol in one.free_symbols} != {symbol.name for symbol in other.free_symbols}
    value, reference = _value(one), _value(other)
    if not (value.is_finite and reference.is_finite):
        return value != reference
    tolerance = RELATIVE_DIFFERENCE * max(abs(value), abs(reference))
    return all(abs(scale * value - reference) > scale * tolerance for scale in _PERCENT_OR_NOT)


def _value(number: sympy.Expr) -> sympy.Expr:
    value = number.evalf(20)
    return sympy.S.Zero if getattr(value, "_prec", 0) == 1 else value  # no digit of it is known: terms cancelled


def _parts(expression: sympy.Basic) -> list:
    """The members of a tuple or set, the latter sorted by value, or the entries of a matrix."""
    if isinstance(expression, sympy.MatrixBase):
        return list(expression.flat())
    if isinstance(expression, sympy.FiniteSet):
        return sorted(expression.args, key=_order)
    return list(expression.args) if isinstance(expression, sympy.Tuple | sympy.Interval) else []


def _order(part: sympy.Basic) -> tuple:
    if isinstance(part, sympy.Tuple):
        return 1, tuple(map(_order, part.args))
    return 0, sympy.default_sort_key(part.evalf() if isinstance(part, EvalfMixin) else part)


def _with_last_variable(text: str, reference: str | None = None) -> str:
    """Puts the last letters of a canonical text in braces if they are no unit: math-verify reads 3t as 3 tons, so 3.

    In an answer, letters that its `reference` lacks may be a unit.
    """
    match = _LAST_LETTERS.search(text)
    name = match[1] if match else ""
    if not name or (
        is_unit(" " + name, attached=False) if reference is None else is_unit(name) and name not in reference
    ):
        return text
    return f"{text[: match.start()]}{{{name}}}"


def _with_capitals_apart(*texts: str) -> list[str]:
    """Texts in which Greek letters stand for capitals whose small letter is there too: to math-verify R is r."""
    letters = set(_LETTER.findall(" ".join(texts)))
    capitals = sorted(letter for letter in letters if letter != letter.lower() in letters)
    unused = (name for name in _GREEK if not any(name in text for text in texts))
    names = dict(zip(capitals, unused, strict=False))
    return [_LETTER.sub(lambda match: names.get(match[0], match[0]), text) for text in texts]


def _read(text: str) -> list:
    text = with_plain_numbers(text)
    alternatives = _OR.split(text)
    text = _MEMBER.sub("", _BOTH.sub(",", text))
    if text.count(r"\pm") == 1 and "," not in text:  # within a fraction math-verify loses one of the signs
        text = ",".join(text.replace(r"\pm", sign) for sign in "+-")
    found = parse(rf"\boxed{{{text}}}", _LATEX, fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=True)
    if len(alternatives) > 1 and all(map(_INEQUALITY.search, alternatives)):
        sets = [value.as_set() for part in alternatives for value in _read(part) if isinstance(value, Boolean)]
        found += [sympy.Union(*sets)] if len(sets) == len(alternatives) else []
    return found


def _is_number_and_more(given: str) -> bool:
    """Whether the answer goes on after a number with a text or an index that no unit has: 7 ft 8 in, 7 squared."""
    found = split_number(given)
    if found is None:
        return False
    rest = found[1]
    return rest.startswith((r"\text", "_")) and re.search(r"[-+*/=^,]|\\(?!text)", _TEXT.sub("", rest)) is None


def _is_statement(given: str, wanted: str) -> bool:
    """Whether the answer says something of its mathematics, which the reference does not: "7 or maybe not"."""
    return bool(STATEMENTS & set(words(_BOTH.sub(",", given))) - set(words(wanted)))


def _is_prose(reference: str) -> bool:
    r"""Whether it is words without a number, or many words; LaTeX's commands, functions and \text{...} are none."""
    found = _WORD.findall(_NO_WORDS.sub(" ", reference))
    return len(found) > MOST_WORDS or bool(found and not re.search(r"\d", reference))
