r"""Mathematics as the GVM authors grade it: math-verify on the whole response, with its mistakes.

The call of the reference implementation (RLHFlow/GVM, `em/utils.py`, `compute_score_math_verify`): the reference in
`\boxed{}`, read as LaTeX; the response read as LaTeX or plain expressions, wherever math-verify finds its answer. For
comparisons with the paper; `math` reads numbers rightly.
"""

import itertools
import logging

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from gvm_jax.rewards.verdicts import ACCEPTED, REJECTED, Grade
from gvm_jax.rewards.verifiers.verifier import Verifier

_LATEX = (LatexExtractionConfig(),)
_RESPONSE = (ExprExtractionConfig(), *_LATEX)


class MathVerifyAlone(Verifier):
    """Answers are whole responses, in which math-verify looks for expressions to compare."""

    def answer(self, text: str) -> str | None:
        return text.strip()

    def start(self) -> None:
        quiet_math_verify()

    def check(self, answer: str, reference: str) -> Grade:
        """1 if math-verify accepts a reading of the response, else 0; raises if all comparisons fail or raise."""
        return ACCEPTED if _accepts(_read_reference(reference), _read(answer)) else REJECTED

    def parses(self, reference: str) -> bool:
        r"""Whether math-verify reads `\boxed{reference}` as more than characters to compare."""
        return any(not isinstance(reading, str) for reading in _read_reference(reference))

    def equivalent(self, answer: str, leader: str) -> bool:
        return _accepts(_read(leader), _read(answer))


def quiet_math_verify() -> None:
    """Keeps the warnings of math-verify and its parser out of the run's output."""
    for library in ("math_verify", "latex2sympy2_extended"):
        logging.getLogger(library).setLevel(logging.ERROR)


def _read(text: str, readers: tuple = _RESPONSE) -> list:
    return parse(text, readers, parsing_timeout=None, raise_on_error=True)  # the process has a deadline


def _read_reference(reference: str) -> list:
    return _read(rf"\boxed{{{reference}}}", _LATEX)


def _accepts(references: list, answers: list) -> bool:
    failure = None
    for pair in itertools.product(references, answers):
        try:
            if verify(*pair, timeout_seconds=None, raise_on_error=True):
                return True
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure
    return False
