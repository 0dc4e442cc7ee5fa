"""Grades responses against reference answers."""

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from gvm_jax.rewards.verdicts import ACCEPTED, FAILURES, REJECTED, Status, Verdict, VerifierFailure
from gvm_jax.rewards.verifiers import Limits, make_verifier
from gvm_jax.rewards.worker_pool import WorkerPool

if TYPE_CHECKING:
    import numpy as np


def grade(
    texts: Sequence[str],
    reference_answers: Sequence[str],
    function: str = "math",
    workers: int = 0,
    deadline_seconds: float = 5.0,
    memory_mib: int = 1024,
) -> list[Verdict]:
    r"""Grades responses in worker processes, which it starts and ends: `grade([r"so \boxed{0.5}"], [r"\frac12"])`.

    To grade again and again, keep a `Grader`: its workers take about a second to start.

    Args:
        texts: n responses.
        reference_answers: the reference answer of each.
        function: name of a verifier (a key of `VERIFIERS`), or `module:function`.
        workers: number of processes; 0 = one per CPU core of this process.
        deadline_seconds: seconds for one answer.
        memory_mib: MiB that a check may allocate.

    Returns:
        n verdicts in the order of the responses. Timeouts and errors of the verifier are verdicts too, with score 0.

    Raises:
        ValueError: an argument is out of range, or the numbers of texts and reference answers differ.
        VerifierFailure: the verifier cannot start.
    """
    with Grader(function, workers, deadline_seconds, memory_mib, max_failure_rate=1.0) as grader:
        return grader.grade(texts, reference_answers)


class PendingVerdict:
    """A verdict that is being worked out."""

    def __init__(self, pool: WorkerPool, answer: str | None, outcome: Future):
        self._pool = pool
        self._answer = answer
        self._outcome = outcome

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return self._outcome.done()

    def result(self, check_interrupt: Callable[[], None] = lambda: None) -> Verdict:
        """Waits for the verdict; `check_interrupt` is called meanwhile and may raise to give up.

        Raises:
            concurrent.futures.CancelledError: the grader was closed before.
        """
        self._pool.wait([self._outcome], check_interrupt)
        error = self._outcome.exception()
        if not self._answer:
            return Verdict(0.0, Status.NO_ANSWER, self._answer)
        if isinstance(error, TimeoutError):
            return Verdict(0.0, Status.TIMEOUT, self._answer, "no verdict within rewards.deadline_seconds")
        if error is not None:
            reason = str(error) if isinstance(error, RuntimeError) else "the verifier's process died"
            return Verdict(0.0, Status.ERROR, self._answer, reason)
        return Verdict(*self._outcome.result(), self._answer)


class Grader(contextlib.AbstractContextManager):
    """Grades responses in worker processes; a context manager, for use from one thread.

    Answers that the verifier knows at once need no worker. Of the others, one that hangs or kills the verifier is lost
    alone. The arguments are the fields of the config's section `rewards`.

    Args:
        function: name of a verifier (a key of `VERIFIERS`), or `module:function`.
        workers: number of processes; 0 = one per CPU core of this process.
        deadline_seconds: seconds for one answer, counted from when a worker takes it up.
        memory_mib: MiB that a worker may allocate beyond what it holds when it is ready.
        max_failure_rate: share of timeouts and errors, in [0, 1], above which `collect` and `grade` raise.

    Raises:
        ValueError: an argument is out of range.
        VerifierFailure: workers cannot start.
    """

    def __init__(self, function: str, workers: int, deadline_seconds: float, memory_mib: int, max_failure_rate: float):
        for name, value, is_allowed, allowed in (
            ("workers", workers, workers >= 0, "0 (one per CPU core) or more"),
            ("deadline_seconds", deadline_seconds, deadline_seconds > 0, "above 0"),
            ("memory_mib", memory_mib, memory_mib > 0, "above 0"),
            ("max_failure_rate", max_failure_rate, 0 <= max_failure_rate <= 1, "in [0, 1]"),
        ):
            if not is_allowed:
                raise ValueError(f"rewards.{name} = {value}: must be {allowed}")
        self._deadline_seconds = deadline_seconds
        self._max_failure_rate = max_failure_rate
        self._verifier = verifier = make_verifier(function, Limits(deadline_seconds, memory_mib))
        try:
            self._pool = WorkerPool(workers or _cpu_cores(), verifier.worker_seconds, memory_mib, verifier.start)
        except BaseException:
            verifier.close()
            raise

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; pending verdicts are cancelled."""
        self._pool.close()
        self._verifier.close()

    @property
    def contract(self) -> str:
        """The rules for a user's own reward function; "" for the verifiers of this package."""
        return self._verifier.contract

    def submit(self, text: str, reference_answer: str) -> PendingVerdict:
        """Starts to grade one response and returns at once."""
        return self._submit(self._verifier.answer(text), reference_answer)

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
        """Raises VerifierFailure if timeouts and errors are more than `max_failure_rate` of these verdicts."""
        failures = [verdict for verdict in verdicts if verdict.status in FAILURES]
        if len(failures) > self._max_failure_rate * len(verdicts):
            errors = sum(verdict.status is Status.ERROR for verdict in failures)
            example = failures[0]
            reason = f", {example.reason[:160]!a}" if example.reason else ""
            raise VerifierFailure(
                f"the verifier failed on {len(failures)} of {len(verdicts)} answers ({errors} errors, "
                f"{len(failures) - errors} timeouts): a rate of {len(failures) / len(verdicts):.3f}, above "
                f"rewards.max_failure_rate = {self._max_failure_rate}. One of them ({example.status.value}): "
                f"{example.answer[:80]!a}{reason}. Against timeouts, raise rewards.deadline_seconds (now "
                f"{self._deadline_seconds}), or lower rewards.workers where the CPU is overloaded. Errors "
                "are exceptions of the verifier or the death of its process, often for want of memory. Where "
                "the answers themselves are to blame, raise rewards.max_failure_rate: each of them scores 0."
            )

    def grade(self, texts: Sequence[str], reference_answers: Sequence[str]) -> list[Verdict]:
        """Grades responses as the function `grade` does; equal pairs of answer and reference are verified once.

        Raises:
            VerifierFailure: timeouts and errors are more than `max_failure_rate` of the verdicts.
        """
        answers = map(self._verifier.answer, texts)
        pairs = list(zip(answers, reference_answers, strict=True))
        pending = {pair: self._submit(*pair) for pair in dict.fromkeys(pairs)}
        return self.collect([pending[pair] for pair in pairs])

    def equivalent(
        self, pairs: Sequence[tuple[str, str]], check_interrupt: Callable[[], None] = lambda: None
    ) -> list[bool]:
        """Whether the two texts of each pair are the same answer; False where the verifier fails."""
        known = [self._verifier.known(*pair) for pair in pairs]
        outcomes = [
            self._pool.run(self._verifier.equivalent, *pair) if same is None else _decided(same)
            for pair, same in zip(pairs, known, strict=True)
        ]
        self._pool.wait(outcomes, check_interrupt)
        return [outcome.exception() is None and outcome.result() for outcome in outcomes]

    def parses(self, reference_answers: Sequence[str]) -> "np.ndarray":
        """Which of n reference answers the verifier can use, bool[n]; False where one hangs or kills it."""
        import numpy as np  # not above: workers import this module, and numpy starts a thread per core

        verifier = self._verifier
        checks = [
            _decided(True) if verifier.surely_parses(answer) else self._pool.run(verifier.parses, answer)
            for answer in reference_answers
        ]
        self._pool.wait(checks)
        return np.array([check.exception() is None and check.result() for check in checks], dtype=bool)

    def _submit(self, answer: str | None, reference_answer: str) -> PendingVerdict:
        known = self._verifier.known(answer, reference_answer) if answer else False
        if known is None:
            outcome = self._pool.run(self._verifier.check, answer, reference_answer)
        else:
            outcome = _decided(ACCEPTED if known else REJECTED)
        return PendingVerdict(self._pool, answer, outcome)


def _decided(value: Any) -> Future:
    outcome: Future = Future()
    outcome.set_result(value)
    return outcome


def _cpu_cores() -> int:
    """Number of CPU cores this process may use; in a container or batch job fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
