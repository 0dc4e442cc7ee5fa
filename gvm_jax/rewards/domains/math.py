"""Mathematics: the last box of a response, verified by math-verify."""

import itertools
import logging
import re

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from gvm_jax.rewards.answers import compare_numbers, extract_boxed
from gvm_jax.rewards.domains.domain import Domain
from gvm_jax.rewards.verdicts import ACCEPTED, REJECTED, Grade

MOST_WORDS = 6  # of a reference with a number: "12 cubic meters per second"
_FUNCTIONS = r"\b(?:(?:a|arc)?(?:sin|cos|tan|cot|sec|csc)h?|sqrt|infinity|infty|floor|ceil)\b"
_NO_WORDS = re.compile(rf"\\(?:text\w*|mathrm|mbox)\s*\{{[^{{}}]*\}}|\\[a-zA-Z]+|{_FUNCTIONS}")
_WORD = re.compile(r"[A-Za-z]*[a-z]{4,}|[A-Z][a-z]{2,}")
_GOLD = (LatexExtractionConfig(),)
_ANSWER = (ExprExtractionConfig(), LatexExtractionConfig())


class Math(Domain):
    r"""Answers are the last complete `\boxed{...}`; plain numbers are compared at once, all else by math-verify."""

    def answer(self, text: str) -> str | None:
        """The content of the last box."""
        return extract_boxed(text)

    def known(self, answer: str, reference: str) -> bool | None:
        """Of two plain numbers, whether they are equal."""
        return compare_numbers(answer, reference)

    def start(self) -> None:
        """Loads and tries math-verify.

        Raises:
            RuntimeError: math-verify does not work here; with a broken parser it rejects every answer.
        """
        for library in ("math_verify", "latex2sympy2_extended"):
            logging.getLogger(library).setLevel(logging.ERROR)
        if not equivalent(r"\frac{1}{2}", "0.50"):
            raise RuntimeError(r"math-verify does not accept \frac{1}{2} for 0.50: reinstall math-verify, antlr4")

    def check(self, answer: str, reference: str) -> Grade:
        """1 for an equivalent answer, else 0."""
        return ACCEPTED if equivalent(answer, reference) else REJECTED

    def parses(self, reference: str) -> bool:
        r"""Whether math-verify reads `\boxed{reference}` as mathematics, rather than as mere characters to compare.

        Bare words are not, though it reads them as products of their letters: "Paris" would be "pairs".
        """
        return not _is_prose(reference) and any(not isinstance(reading, str) for reading in _read(reference, _GOLD))

    def equivalent(self, answer: str, leader: str) -> bool:
        """Whether the answer is right where the other is the reference."""
        return equivalent(answer, leader)


def _is_prose(reference: str) -> bool:
    r"""Whether it is words without a number, or many words; LaTeX's commands, functions and \text{...} are none."""
    words = _WORD.findall(_NO_WORDS.sub(" ", reference))
    return len(words) > MOST_WORDS or bool(words and not re.search(r"\d", reference))


def equivalent(answer: str, gold: str) -> bool:
    r"""Whether math-verify accepts `\boxed{answer}` for `\boxed{gold}`.

    The call of the paper's code (arXiv 2505.02391), whose score, 1 or 0, is accepted above 0.5. The
    timeouts of math-verify itself are off, because the process has the deadline.

    Raises:
        Exception: whatever the comparison of some reading of the two raised, when no reading was accepted.
    """
    failure = None
    for pair in itertools.product(_read(gold, _GOLD), _read(answer, _ANSWER)):
        try:
            if verify(*pair, timeout_seconds=None, raise_on_error=True):
                return True
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure
    return False


def _read(text: str, targets: tuple) -> list:
    return parse(rf"\boxed{{{text}}}", targets, parsing_timeout=None, raise_on_error=True)
