"""Scores responses against reference answers."""

import contextlib
import enum
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gvm_jax.rewards import verifier
from gvm_jax.rewards.answers import compare_numbers, extract_boxed, parse_number
from gvm_jax.rewards.processes import WorkerPool

if TYPE_CHECKING:
    import numpy as np


class Status(enum.Enum):
    """How the grading of one response ended."""

    CORRECT = "correct"  # the verifier accepts the answer
    WRONG = "wrong"  # the verifier rejects it
    NO_ANSWER = "no_answer"  # no complete box, or nothing in it
    TIMEOUT = "timeout"  # the verifier missed the deadline
    ERROR = "error"  # the verifier raised, or its process died


@dataclass(frozen=True)
class Verdict:
    """The grade of one response."""

    score: float  # 1 for a correct answer, else 0
    status: Status
    answer: str | None  # what the last box holds; None without a box


class VerifierFailure(RuntimeError):  # noqa: N818
    """The verifier failed on too many answers for their scores to be a reward."""


class PendingVerdict:
    """A verdict to come."""

    def __init__(self, pool: WorkerPool, answer: str | None, outcome: Future[bool]):
        self._pool = pool
        self._answer = answer
        self._outcome = outcome

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return self._outcome.done()

    def result(self, check_interrupt: Callable[[], None] = lambda: None) -> Verdict:
        """The verdict, waited for; `check_interrupt` is called meanwhile and may raise to give up.

        Raises:
            concurrent.futures.CancelledError: the grader was closed before.
        """
        self._pool.wait([self._outcome], check_interrupt)
        error = self._outcome.exception()
        if not self._answer:
            status = Status.NO_ANSWER
        elif error is not None:
            status = Status.TIMEOUT if isinstance(error, TimeoutError) else Status.ERROR
        else:
            status = Status.CORRECT if self._outcome.result() else Status.WRONG
        return Verdict(float(status is Status.CORRECT), status, self._answer)


class MathGrader(contextlib.AbstractContextManager):
    """Grades the boxed answers of responses with math-verify, in worker processes; a context manager.

    Plain numbers are compared at once; of all others, an answer that hangs or kills the verifier costs itself
    alone. For use from one thread.

    Args:
        workers: processes; 0 = one per CPU core of this process.
        deadline_seconds: time for one answer, counted from when a worker takes it up.
        max_failure_rate: timeouts and errors per answer, in [0, 1], above which `collect` and `grade` raise.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: workers cannot start.
    """

    def __init__(self, workers: int, deadline_seconds: float, max_failure_rate: float):
        if workers < 0:
            raise ValueError(f"rewards.workers = {workers}: must be 0 (one per CPU core) or more")
        if not deadline_seconds > 0:
            raise ValueError(f"rewards.deadline_seconds = {deadline_seconds}: must be above 0")
        if not 0 <= max_failure_rate <= 1:
            raise ValueError(f"rewards.max_failure_rate = {max_failure_rate}: must be in [0, 1]")
        self._deadline_seconds = deadline_seconds
        self._max_failure_rate = max_failure_rate
        self._pool = WorkerPool(workers or _cpu_cores(), deadline_seconds)

    def __exit__(self, *_) -> None:
        """Closes the grader."""
        self.close()

    def close(self) -> None:
        """Ends the workers; verdicts still to come are cancelled."""
        self._pool.close()

    def submit(self, text: str, gold: str) -> PendingVerdict:
        r"""Starts the grading of one response and returns at once.

        Args:
            text: the response, with its answer in the last `\boxed{...}`.
            gold: the reference answer, without a box.
        """
        return self._submit(extract_boxed(text), gold)

    def collect(
        self, pending: Sequence[PendingVerdict], check_interrupt: Callable[[], None] = lambda: None
    ) -> list[Verdict]:
        """Waits for verdicts and returns them in the order given; `check_interrupt` may raise to give up.

        Raises:
            VerifierFailure: timeouts and errors are more than `max_failure_rate` of them.
        """
        verdicts = [verdict.result(check_interrupt) for verdict in pending]
        self.check(verdicts)
        return verdicts

    def check(self, verdicts: Sequence[Verdict]) -> None:
        """Whether these verdicts can be scores.

        Raises:
          VerifierFailure: timeouts and errors are more than `max_failure_rate` of them.
        """
        failures = [verdict for verdict in verdicts if verdict.status in (Status.TIMEOUT, Status.ERROR)]
        if len(failures) > self._max_failure_rate * len(verdicts):
            errors = sum(verdict.status is Status.ERROR for verdict in failures)
            example = failures[0]
            raise VerifierFailure(
                f"the verifier failed on {len(failures)} of {len(verdicts)} answers ({errors} errors, "
                f"{len(failures) - errors} timeouts): a rate of {len(failures) / len(verdicts):.3f}, above "
                f"rewards.max_failure_rate = {self._max_failure_rate}. One of them ({example.status.value}): "
                f"{example.answer[:80]!a}. Against timeouts, raise rewards.deadline_seconds (now "
                f"{self._deadline_seconds}), or lower rewards.workers where the CPU is overloaded. Errors "
                "are exceptions of the verifier or the death of its process, often for want of memory. Where "
                "the answers themselves are to blame, raise rewards.max_failure_rate: each of them scores 0."
            )

    def grade(self, texts: Sequence[str], golds: Sequence[str]) -> list[Verdict]:
        """Grades responses; equal pairs of answer and reference are verified once.

        Args:
            texts: responses.
            golds: the reference answer of each.

        Returns:
            The verdicts in the order of the responses.

        Raises:
            VerifierFailure: timeouts and errors are more than `max_failure_rate` of the verdicts.
        """
        pairs = [(extract_boxed(text), gold) for text, gold in zip(texts, golds, strict=True)]
        pending = {pair: self._submit(*pair) for pair in dict.fromkeys(pairs)}
        return self.collect([pending[pair] for pair in pairs])

    def equivalent(
        self, pairs: Sequence[tuple[str, str]], check_interrupt: Callable[[], None] = lambda: None
    ) -> list[bool]:
        """Whether the first of each pair is a right answer where the second is the reference; not where this fails."""
        known = [compare_numbers(*pair) for pair in pairs]
        outcomes = [
            self._pool.run(verifier.equivalent, *pair) if equal is None else _decided(equal)
            for pair, equal in zip(pairs, known, strict=True)
        ]
        self._pool.wait(outcomes, check_interrupt)
        return [outcome.exception() is None and outcome.result() for outcome in outcomes]

    def parses(self, golds: Sequence[str]) -> "np.ndarray":
        """Which reference answers the verifier can read, bool[n]; not one that hangs or kills it."""
        import numpy as np  # not above: workers import this module, and numpy starts a thread per core

        checks = [
            self._pool.run(verifier.parses, gold) if parse_number(gold) is None else _decided(True) for gold in golds
        ]
        self._pool.wait(checks)
        return np.array([check.exception() is None and check.result() for check in checks], dtype=bool)

    def _submit(self, answer: str | None, gold: str) -> PendingVerdict:
        known = compare_numbers(answer, gold) if answer else False
        outcome = self._pool.run(verifier.equivalent, answer, gold) if known is None else _decided(known)
        return PendingVerdict(self._pool, answer, outcome)


def _decided(value: bool) -> Future[bool]:
    outcome: Future[bool] = Future()
    outcome.set_result(value)
    return outcome


def _cpu_cores() -> int:
    """Cores this process may use, which in a container or a batch job are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
