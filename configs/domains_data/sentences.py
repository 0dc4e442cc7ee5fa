"""A reward of one's own: is the response one sentence of so many words that has a certain one among them?"""

import re


def score(texts: list[str], references: list[str]) -> list[tuple[float, str]]:
    """A grade of each response.

    Args:
        texts: responses.
        references: of each, the least and the greatest number of words, and the word, as "5 8 river".

    Returns:
        (score, status) of each. A score above 0 means that the response is accepted: it is 1 here, or 0.
    """
    return [_grade(text.strip(), *reference.split()) for text, reference in zip(texts, references, strict=True)]


def _grade(text: str, least: str, most: str, word: str) -> tuple[float, str]:
    if not text:
        return 0.0, "no_answer"
    words = re.findall(r"[\w'’-]+", text.lower())
    ends = len(re.findall(r"[.!?]+(?=\s|$)", text))
    repeats = len(words) - len(set(words))  # "river river river river river." is no sentence
    is_sentence = ends == 1 and text[-1] in ".!?" and repeats <= 1
    is_right = is_sentence and int(least) <= len(words) <= int(most) and word in words
    return (1.0, "correct") if is_right else (0.0, "wrong")
