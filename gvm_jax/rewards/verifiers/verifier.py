"""The base class of verifiers. Nothing here may import jax."""

import abc
import dataclasses
from typing import NamedTuple

from gvm_jax.rewards.verdicts import Grade


class Limits(NamedTuple):
    """Limits of one check."""

    deadline_seconds: float
    memory_mib: int


@dataclasses.dataclass(frozen=True)
class Verifier(abc.ABC):
    """Finds the answer in a response and checks it against a reference answer.

    `answer`, `known` and `surely_parses` run in the trainer's process, which waits for them: they take linear time on
    any text. `start`, `check`, `parses` and `equivalent` run in a worker process under a deadline and a memory limit;
    where they raise, hang or die, that one answer is lost. A verifier reaches the workers by pickle.
    """

    limits: Limits

    @property
    def worker_seconds(self) -> float:
        """A worker that has not finished a check by then is killed and replaced."""
        return self.limits.deadline_seconds

    @property
    def contract(self) -> str:
        """The rules for a user's own check, quoted with the first of its errors; "" for a verifier of ours."""
        return ""

    @abc.abstractmethod
    def answer(self, text: str) -> str | None:
        """The answer in a response; with None or "" the response has none and scores 0."""

    @abc.abstractmethod
    def check(self, answer: str, reference_answer: str) -> Grade:
        """The grade of an answer."""

    def known(self, answer: str, reference_answer: str) -> bool | None:
        """Whether the answer is right, where that needs no worker; else None."""
        return None

    def surely_parses(self, reference_answer: str) -> bool:
        """True where `parses` is True and no worker is needed to see it."""
        return False

    def start(self) -> None:
        """Prepares a fresh worker; raises where a person must mend something first."""
        return

    def close(self) -> None:
        """Runs in the trainer's process after the workers have ended."""
        return

    def parses(self, reference_answer: str) -> bool:
        """Whether answers can be checked against this reference answer."""
        return True

    def equivalent(self, answer: str, leader: str) -> bool:
        """Whether two different texts are the same answer to a majority vote (maj@k)."""
        return False
