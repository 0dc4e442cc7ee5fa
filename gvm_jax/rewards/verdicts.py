"""The result of grading a response."""

import enum
from dataclasses import dataclass, field

from gvm_jax.errors import InputError


class Status(enum.Enum):
    """How the grading of one response ended."""

    CORRECT = "correct"  # accepted: the score is above 0
    WRONG = "wrong"  # rejected
    SLOW = "slow"  # rejected: the response is a program that did not end in time
    NO_ANSWER = "no_answer"  # the response has no answer, or an empty one
    TIMEOUT = "timeout"  # the verifier missed the deadline
    ERROR = "error"  # the verifier raised, or its process died


FAILURES = (Status.TIMEOUT, Status.ERROR)  # of the verifier: they say nothing of the response

Grade = tuple[float, Status]  # a score and its status

ACCEPTED: Grade = (1.0, Status.CORRECT)
REJECTED: Grade = (0.0, Status.WRONG)


@dataclass(frozen=True)
class Verdict:
    """The grade of one response."""

    score: float  # in [-1, 1]; above 0 = accepted
    status: Status
    answer: str | None  # the answer that the verifier found in the response; None without one
    reason: str = field(default="", compare=False)  # of a failure, for a person


class VerifierFailure(RuntimeError):  # noqa: N818
    """The verifier cannot start, or failed on too many answers for their scores to be a reward."""


class VerifierRefused(VerifierFailure, InputError):  # noqa: N818
    """`rewards.function` names no verifier that can be used here."""
