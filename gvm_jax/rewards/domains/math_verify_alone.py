r"""Mathematics as the GVM authors grade it: math-verify on the whole response, with all that it takes and mistakes.

The call of the reference implementation (RLHFlow/GVM, `em/utils.py`, `compute_score_math_verify`): the reference in
`\boxed{}`, read as LaTeX; the response read as LaTeX or plain expressions, wherever math-verify finds its answer. For
comparisons with the paper; `math` reads numbers rightly.
"""

import itertools
import logging

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from gvm_jax.rewards.domains.domain import Domain
from gvm_jax.rewards.verdicts import ACCEPTED, REJECTED, Grade

_REFERENCE = (LatexExtractionConfig(),)
_RESPONSE = (ExprExtractionConfig(), LatexExtractionConfig())


class MathVerifyAlone(Domain):
    """Answers are whole responses, in which math-verify looks for what it compares."""

    def answer(self, text: str) -> str | None:
        """All of the response."""
        return text.strip()

    def start(self) -> None:
        """Makes math-verify quiet."""
        for library in ("math_verify", "latex2sympy2_extended"):
            logging.getLogger(library).setLevel(logging.ERROR)

    def check(self, answer: str, reference: str) -> Grade:
        """1 if math-verify accepts a reading of the response for the reference, else 0.

        Raises:
            Exception: whatever the comparison of some reading raised, when no reading was accepted.
        """
        return ACCEPTED if _accepts(_read(reference), parse(answer, _RESPONSE, **_WITHOUT_TIMEOUT)) else REJECTED

    def parses(self, reference: str) -> bool:
        r"""Whether math-verify reads `\boxed{reference}` as more than characters to compare."""
        return any(not isinstance(reading, str) for reading in _read(reference))

    def equivalent(self, answer: str, leader: str) -> bool:
        """Whether math-verify finds the same in both responses."""
        return _accepts(*(parse(text, _RESPONSE, **_WITHOUT_TIMEOUT) for text in (leader, answer)))


_WITHOUT_TIMEOUT = {"parsing_timeout": None, "raise_on_error": True}  # the process has the deadline


def _read(reference: str) -> list:
    return parse(rf"\boxed{{{reference}}}", _REFERENCE, **_WITHOUT_TIMEOUT)


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
