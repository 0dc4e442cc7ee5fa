"""What makes up a domain. Nothing here may import jax."""

import abc
import dataclasses
from typing import NamedTuple

from gvm_jax.rewards.verdicts import Grade


class Limits(NamedTuple):
    """What one check may take."""

    deadline_seconds: float
    memory_mib: int


@dataclasses.dataclass(frozen=True)
class Domain(abc.ABC):
    """What the answer of a response is, and how one is checked against a reference.

    `answer`, `known` and `surely_parses` run in the process of the run, which waits for them: in linear time, on any
    text. All else runs in a worker process under a deadline and a limit of memory, and may raise, hang or die: that
    costs its own answer alone. A domain goes to the workers by pickle.
    """

    limits: Limits

    @property
    def worker_seconds(self) -> float:
        """After so long a worker that is not done with a check is given up, and replaced."""
        return self.limits.deadline_seconds

    @property
    def contract(self) -> str:
        """What a check of the user's own must do, which is told with the first of its errors; "" = it is not theirs."""
        return ""

    @abc.abstractmethod
    def answer(self, text: str) -> str | None:
        """What a response's text says that its answer is; None or "" = it has none, and scores 0."""

    @abc.abstractmethod
    def check(self, answer: str, reference: str) -> Grade:
        """The grade of an answer."""

    def known(self, answer: str, reference: str) -> bool | None:
        """Whether the answer is right, where that needs no worker; else None."""
        return None

    def surely_parses(self, reference: str) -> bool:
        """Whether `parses` is True, where that needs no worker."""
        return False

    def start(self) -> None:
        """Makes a fresh worker ready, or raises what a person must mend first."""
        return

    def close(self) -> None:
        """In the process of the run, when the workers have ended."""
        return

    def parses(self, reference: str) -> bool:
        """Whether answers can be checked against this reference."""
        return True

    def equivalent(self, answer: str, leader: str) -> bool:
        """Whether two answers, different texts, are the same to a vote (maj@k)."""
        return False
