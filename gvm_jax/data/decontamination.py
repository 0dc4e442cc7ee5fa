r"""Finds training problems that are a benchmark's, by their text.

Two problems are the same if their normalised words are equal, or if the one contains at least 70 % of the other's
8-grams: the criterion by which PaLM (arXiv 2204.02311, section 8) calls a benchmark's example contaminated, here by one
training problem. A rewording is not found, nor is a short problem with other numbers taken for the same.
"""

import collections
import math
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

NGRAM = 8  # words
SHARE = 0.7  # of a benchmark problem's distinct n-grams, found in one training problem

_FRACTION = re.compile(r"\\[dtc]frac(?![a-z])")
_LAYOUT = re.compile(  # LaTeX that says how, not what: spaces, sizes, fonts
    r"\\(?:[,;:!> ]|(?:q?quad|left|right|[bB]igg?[lr]?|(?:display|text)style|limits|text(?:bf|it|rm)?|math(?:rm|bf|it)|"
    r"operatorname)(?![a-z]))"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[-+*/=<>^%|]")


def words(problem: str) -> tuple[str, ...]:
    """The problem's words, numbers and operators in lower case; punctuation, braces and LaTeX's layout are left out."""
    text = unicodedata.normalize("NFKC", problem).lower()
    text = _LAYOUT.sub(" ", _FRACTION.sub(r"\\frac", text))
    return tuple(_WORD.findall(_THOUSANDS.sub("", text)))


def contaminated(problems: Sequence[str], benchmark: Sequence[str]) -> np.ndarray:
    """Which problems are in a benchmark, bool[len(problems)].

    A benchmark problem of fewer than `NGRAM` words is found only whole. The time is linear in the words of both, times
    the number of benchmark problems that share an n-gram.
    """
    whole = {sequence for sequence in map(words, benchmark) if sequence}
    holders: dict[tuple[str, ...], list[int]] = collections.defaultdict(list)  # n-gram -> benchmark problems
    wanted = []  # n-grams that make a problem the benchmark problem
    for number, sequence in enumerate(whole):
        grams = _ngrams(sequence)
        wanted.append(math.ceil(SHARE * len(grams)))
        for gram in grams:
            holders[gram].append(number)

    def found(sequence: tuple[str, ...]) -> bool:
        if sequence in whole:
            return True
        shared = collections.Counter(number for gram in _ngrams(sequence) for number in holders.get(gram, ()))
        return any(count >= wanted[number] for number, count in shared.items())

    return np.array([found(words(problem)) for problem in problems], dtype=bool)


def _ngrams(sequence: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {sequence[i : i + NGRAM] for i in range(len(sequence) - NGRAM + 1)}
