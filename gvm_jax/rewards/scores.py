"""Benchmark scores of k graded samples a question: avg@k, pass@k, maj@k, and their bootstrap intervals.

Pure functions on host arrays. Not imported by the package itself, whose worker processes do without numpy.
"""

import collections
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

RESAMPLES = 10_000  # of the bootstrap
_AT_ONCE = 500  # of them
NO_GROUP = -1  # of a sample without an answer

Pairs = Sequence[tuple[str, str]]


def pass_at_k(correct: Int[np.ndarray, " q"], samples: int, k: int) -> Float[np.ndarray, " q"]:
    """The chance that k of a question's samples, drawn without replacement, hold a correct one.

    1 - C(n-c, k) / C(n, k) with n samples, c of them correct: the unbiased estimator of Chen et al., 2021
    (arXiv 2107.03374, equation 1). For k = 1 that is c/n.

    Args:
      correct: c of each question.
      samples: n, the same for all.
      k: from 1 to n.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples: k must be from 1 to {samples}")
    ways = math.comb(samples, k)
    return np.array([1 - math.comb(samples - int(c), k) / ways for c in correct], np.float64)


def ks(samples: int) -> list[int]:
    """The k of pass@k: 1, 2, 4, ... and the number of samples itself."""
    return sorted({2**i for i in range(samples.bit_length())} | {samples})


def group_answers(
    answers: Sequence[Sequence[str | None]], equivalent: Callable[[Pairs], Sequence[bool]]
) -> list[Int[np.ndarray, " n"]]:
    """Groups the answers of each question by what they mean, without a look at the reference answer.

    A question's first answer that is in no group yet leads a new one, and takes in all others that are equivalent to
    it; equivalence as a verifier sees it need not be transitive. Equal texts are in one group.

    Args:
      answers: of each question, those of its samples; None or "" = none.
      equivalent: for pairs (answer, leader), whether each is; one call for all questions.

    Returns:
      Of each question, each sample's group from 0 on in order of their leaders, or `NO_GROUP`.
    """
    waiting = [list(dict.fromkeys(text for text in of_question if text)) for of_question in answers]
    groups: list[dict[str, int]] = [{} for _ in answers]
    number = 0
    while any(waiting):
        leaders = [texts[0] if texts else None for texts in waiting]
        pairs = [(text, texts[0]) for texts in waiting for text in texts[1:]]
        same = iter(equivalent(pairs))
        for i, (leader, texts) in enumerate(zip(leaders, waiting, strict=True)):
            if leader is None:
                continue
            joins = [leader, *(text for text in texts[1:] if next(same))]
            groups[i] |= dict.fromkeys(joins, number)
            waiting[i] = [text for text in texts if text not in joins]
        number += 1
    return [
        np.array([group.get(text, NO_GROUP) for text in of_question], np.int64)
        for group, of_question in zip(groups, answers, strict=True)
    ]


def majority(correct: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> float:
    """maj@n of one question: whether the answer that most samples give is correct.

    Of several largest groups one is drawn at random, so the mean over them counts; of a group whose members were
    graded differently, the mean of their grades. Samples without an answer have no vote; 0 without any vote.

    Args:
      correct: grade of each sample.
      groups: its answer's group, or `NO_GROUP`.
    """
    votes = collections.Counter(groups[groups != NO_GROUP].tolist())
    most = max(votes.values(), default=0)
    winners = [correct[groups == group].mean() for group, count in votes.items() if count == most]
    return float(np.mean(winners)) if winners else 0.0


def bootstrap_interval(scores: Float[np.ndarray, "q m"], seed: int) -> Float[np.ndarray, "2 m"]:
    """95 % intervals of the means over questions: percentiles of the means of resampled questions.

    Questions are drawn with replacement (Efron, 1979), the same ones for all columns; their samples stay as they are.
    Where all questions score alike the interval is a point, which says nothing of other questions.

    Args:
      scores: m scores of each question.
      seed: of the resampling.

    Returns:
      Lower and upper ends.
    """
    random, questions = np.random.default_rng(seed), len(scores)
    means = [
        scores[random.integers(questions, size=(_AT_ONCE, questions))].mean(1) for _ in range(RESAMPLES // _AT_ONCE)
    ]
    return np.quantile(np.concatenate(means), (0.025, 0.975), axis=0)
