r"""Short answers and multiple choice: texts are equal up to case, surrounding punctuation and the like.

Texts are compared as in SQuAD's evaluation (arXiv 1606.05250, section 5): without case, punctuation, articles and
differences of white space. Two departures keep apart what differs: punctuation goes at the ends alone (1.5 is not 15,
nor -3 3), an article at the start alone and not without a word after it (choice A is an answer). Before that Unicode's
compatibility forms are made one (NFKC), and LaTeX's `\text{}` and `$ $` taken off.

A reference that is a single letter is a choice. Then B, (B), B., B) Paris, (B) Paris and option B are the same answer.
"""

import re
import unicodedata

from gvm_jax.rewards.answers import final_answer
from gvm_jax.rewards.verdicts import ACCEPTED, REJECTED, Grade
from gvm_jax.rewards.verifiers.verifier import Verifier

_STYLE = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit)\s*\{([^{}]*)\}")
_ARTICLE = re.compile(r"(?:a|an|the) (?=\S)")
_CHOICE = re.compile(r"(?:option |choice )?(?:\(([^\W\d_])\)|([^\W\d_])(?=[).:,]|$))")
# After a choice another one: "A, B", "A) or B)", "(A)(B)", "A. B.", "A: 3, B: 4".
_NEXT = r"(?<!\w)(?:\([^\W\d_]\)|(?<!\()[^\W\d_](?:[):]|\.(?=\s+\S)))"
_LIST = r"[\s).]*(?:[,;/&]|and\b|or\b)\s*\(?[^\W\d_](?!\w)(?=\W*$|\s*[,;/&]|\s+(?:and|or)\b)"
_ANOTHER = re.compile(rf"{_LIST}|\.\s*[^\W\d_]\.\s*[^\W\d_](?!\w)|.*?{_NEXT}", re.DOTALL)
_MARKUP = "*_`\"' "  # around a choice


class Exact(Verifier):
    r"""Answers are the last `\boxed{...}`, else what follows the last "answer is", "answer:" or "####" in its line."""

    def answer(self, text: str) -> str | None:
        return final_answer(text)

    def known(self, answer: str, reference: str) -> bool:
        return same_text(answer, reference)

    def check(self, answer: str, reference: str) -> Grade:
        return ACCEPTED if same_text(answer, reference) else REJECTED

    def surely_parses(self, reference: str) -> bool:
        return normalise(reference) != ""

    def parses(self, reference: str) -> bool:
        return self.surely_parses(reference)


def same_text(answer: str, reference: str) -> bool:
    """Whether both are the same choice, or the same text once normalised."""
    normal = normalise(reference)
    if len(normal) == 1 and normal.isalpha() and (letter := _choice(answer)):
        return letter == normal
    return normal != "" and normalise(answer) == normal


def normalise(text: str) -> str:
    """The form in which texts are compared, "" where nothing is left. Linear time."""
    text = _folded(text)
    start, end = 0, len(text)
    while start < end and _is_around(text[start]) and not _is_sign(text, start):
        start += 1
    while end > start and _is_around(text[end - 1]) and text[end - 1] != "#":  # C# is not C
        end -= 1
    return _ARTICLE.sub("", text[start:end], count=1) if _ARTICLE.match(text, start, end) else text[start:end]


def _folded(text: str) -> str:
    """Without LaTeX's styles, compatibility forms, case and runs of white space."""
    text = _STYLE.sub(r"\1", text).strip()
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1]
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.replace("\N{MINUS SIGN}", "-").split())


def _is_around(character: str) -> bool:
    return character == " " or unicodedata.category(character).startswith("P")


def _is_sign(text: str, at: int) -> bool:
    """Whether a dash or a point belongs to the number that follows it: -3, .5, -.5."""
    return re.match(r"-?\.?\d", text[at : at + 3]) is not None


def _choice(answer: str) -> str | None:
    text = _folded(answer).strip(_MARKUP)
    match = _CHOICE.match(text)
    return (match[1] or match[2]) if match and not _ANOTHER.match(text, match.end()) else None
