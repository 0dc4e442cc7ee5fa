r"""Size limits of answers: which ones would keep computer algebra busy for too long, judged by their text alone."""

import re

MAX_EXTRA_CHARACTERS = 200  # of an answer, beyond four times its reference's
MAX_DEPTH = 10  # of brackets in brackets
MAX_NUMBER = 2000  # of an exponent or under a factorial, where the reference has no larger one
MAX_NUMBER_BESIDE_VARIABLES = 30  # there, (x+y)^{30} and \binom{n}{30}: they may be multiplied out
MAX_EQUATIONS = 8  # sides of a chain
MAX_FUNCTIONS = 4  # more than its reference has
MAX_ROOTS = 8  # more than its reference has
MAX_INDICES = 4  # more than its reference has
_COMPUTED = frozenset("sum prod int iint oint lim bigcup bigcap limsup liminf".split())
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp gcd lcm binom lfloor lceil det".split()
)
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_GROUP = r"(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|\([^()]*\)|-?[\w.]+)"
_POWER = re.compile(rf"(.?) ?\^ ?({_GROUP})")
_FACTORIAL = re.compile(rf"({_GROUP}|[)}}\]!]) ?!")
_BINOMIAL = re.compile(rf"\\binom ?({_GROUP}) ?({_GROUP})")
_LARGE_SCIENTIFIC = re.compile(r"\d\.?(?:[eE]|\\text\{[eE]\})[+-]?\d{5}")
_BRACKET = re.compile(r"\\[{}]|[{}()\[\]]")
_VARIABLE = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]")
_RELATION = re.compile(r"[<>]|\\(?:le|ge|lt|gt|in|mathbb|infty)(?![a-zA-Z])")


def is_too_large(answer: str, reference: str) -> bool:
    r"""Whether an answer is rejected for its size; both arguments are canonical texts.

    It is if it has many characters for a short reference, deep brackets, large or nested exponents and factorials
    (9^{9^9}, (10^9)!), many functions, a long chain of equations, infinity where the reference has none, or a sum,
    product, integral or limit that is left to be computed, unless the reference has the like.
    """
    if len(answer) > MAX_EXTRA_CHARACTERS + 4 * len(reference):
        return True
    commands, expected = _COMMAND.findall(answer), _COMMAND.findall(reference)
    if set(commands) & _COMPUTED - set(expected) or answer.count("=") >= MAX_EQUATIONS or _depth(answer) > MAX_DEPTH:
        return True
    if "infty" in commands and not _RELATION.search(reference):
        return True
    if sum(name in _FUNCTIONS for name in commands) > MAX_FUNCTIONS + sum(name in _FUNCTIONS for name in expected):
        return True
    if commands.count("sqrt") > MAX_ROOTS + expected.count("sqrt"):
        return True
    if answer.count("_") > MAX_INDICES + reference.count("_"):
        return True
    return _LARGE_SCIENTIFIC.search(answer) is not None or _has_large_powers(answer, reference)


def _has_large_powers(answer: str, reference: str) -> bool:
    largest = max(map(int, re.findall(r"\d{1,6}", reference)), default=0)
    tower = "^" in reference.partition("^")[2]
    variables = _VARIABLE.search(answer)
    for base, exponent in _POWER.findall(answer):
        most = MAX_NUMBER_BESIDE_VARIABLES if variables and base in ")}" else MAX_NUMBER
        if _is_large(exponent, max(largest, most), tower):
            return True
    operands = [operand for pair in _BINOMIAL.findall(answer) for operand in pair] + _FACTORIAL.findall(answer)
    for operand in operands:
        if operand in tuple(")}]!") or "\\" in operand:
            return True
        most = MAX_NUMBER_BESIDE_VARIABLES if _VARIABLE.search(operand) else MAX_NUMBER
        if _is_large(operand, max(largest, most), tower=False):
            return True
    return re.search(r"\^ ?[\w.]+ ?\^", answer) is not None and not tower


def _is_large(operand: str, most: int, tower: bool) -> bool:
    """Whether what is raised to, or under a factorial, holds a large number, or a power or factorial of numbers."""
    if any(len(number) > 6 or int(number) > most for number in re.findall(r"\d+", operand)):
        return True
    return re.search(r"[\d)}] ?[\^!]|\\binom", operand) is not None and not tower


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in _BRACKET.findall(text):
        depth += 1 if bracket[-1] in "{([" else -1
        deepest = max(deepest, depth)
    return deepest
