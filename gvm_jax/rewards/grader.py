"""Scores responses against reference answers."""

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from gvm_jax.rewards.domains import Limits, make_domain
from gvm_jax.rewards.verdicts import ACCEPTED, FAILURES, REJECTED, Status, Verdict, VerifierFailure
from gvm_jax.rewards.worker_pool import WorkerPool

if TYPE_CHECKING:
    import numpy as np


class PendingVerdict:
    """A verdict to come."""

    def __init__(self, pool: WorkerPool, answer: str | None, outcome: Future):
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
            return Verdict(0.0, Status.NO_ANSWER, self._answer)
        if isinstance(error, TimeoutError):
            return Verdict(0.0, Status.TIMEOUT, self._answer, "no verdict within rewards.deadline_seconds")
        if error is not None:
            reason = str(error) if isinstance(error, RuntimeError) else "the verifier's process died"
            return Verdict(0.0, Status.ERROR, self._answer, reason)
        return Verdict(*self._outcome.result(), self._answer)


class Grader(contextlib.AbstractContextManager):
    """Grades responses in worker processes, by the rules of a domain; a context manager.

    What a domain knows at once needs no worker; of all others, an answer that hangs or kills the verifier costs itself
    alone. For use from one thread. The arguments are the fields of the config's section `rewards`.

    Args:
        function: the domain, a name of `DOMAINS` or `module:function`.
        workers: processes; 0 = one per CPU core of this process.
        deadline_seconds: time for one answer, counted from when a worker takes it up.
        memory_mib: what a worker may allocate beyond what it holds when it is ready, in MiB.
        max_failure_rate: timeouts and errors per answer, in [0, 1], above which `collect` and `grade` raise.

    Raises:
        ValueError: an argument is out of range.
        VerifierFailure: workers cannot start.
    """

    def __init__(self, function: str, workers: int, deadline_seconds: float, memory_mib: int, max_failure_rate: float):
        if workers < 0:
            raise ValueError(f"rewards.workers = {workers}: must be 0 (one per CPU core) or more")
        if not deadline_seconds > 0:
            raise ValueError(f"rewards.deadline_seconds = {deadline_seconds}: must be above 0")
        if not memory_mib > 0:
            raise ValueError(f"rewards.memory_mib = {memory_mib}: must be above 0")
        if not 0 <= max_failure_rate <= 1:
            raise ValueError(f"rewards.max_failure_rate = {max_failure_rate}: must be in [0, 1]")
        self._deadline_seconds = deadline_seconds
        self._max_failure_rate = max_failure_rate
        self._domain = domain = make_domain(function, Limits(deadline_seconds, memory_mib))
        try:
            self._pool = WorkerPool(workers or _cpu_cores(), domain.worker_seconds, memory_mib, domain.start)
        except BaseException:
            domain.close()
            raise

    def __exit__(self, *_) -> None:
        """Closes the grader."""
        self.close()

    def close(self) -> None:
        """Ends the workers; verdicts still to come are cancelled."""
        self._pool.close()
        self._domain.close()

    @property
    def contract(self) -> str:
        """What a reward function of the user's own must return; "" = the verifier is ours."""
        return self._domain.contract

    def submit(self, text: str, reference_answer: str) -> PendingVerdict:
        """Starts the grading of one response and returns at once.

        Args:
            text: the response.
            reference_answer: the reference that it is checked against.
        """
        return self._submit(self._domain.answer(text), reference_answer)

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
        """Grades responses; equal pairs of answer and reference are verified once.

        Args:
            texts: responses.
            reference_answers: the reference answer of each.

        Returns:
            The verdicts in the order of the responses.

        Raises:
            VerifierFailure: timeouts and errors are more than `max_failure_rate` of the verdicts.
        """
        pairs = [
            (self._domain.answer(text), reference_answer)
            for text, reference_answer in zip(texts, reference_answers, strict=True)
        ]
        pending = {pair: self._submit(*pair) for pair in dict.fromkeys(pairs)}
        return self.collect([pending[pair] for pair in pairs])

    def equivalent(
        self, pairs: Sequence[tuple[str, str]], check_interrupt: Callable[[], None] = lambda: None
    ) -> list[bool]:
        """Whether the first of each pair is the same answer as the second; not where this fails."""
        known = [self._domain.known(*pair) for pair in pairs]
        outcomes = [
            self._pool.run(self._domain.equivalent, *pair) if same is None else _decided(same)
            for pair, same in zip(pairs, known, strict=True)
        ]
        self._pool.wait(outcomes, check_interrupt)
        return [outcome.exception() is None and outcome.result() for outcome in outcomes]

    def parses(self, reference_answers: Sequence[str]) -> "np.ndarray":
        """Which references the verifier can use, bool[n]; not one that hangs or kills it."""
        import numpy as np  # not above: workers import this module, and numpy starts a thread per core

        checks = [
            _decided(True)
            if self._domain.surely_parses(reference_answer)
            else self._pool.run(self._domain.parses, reference_answer)
            for reference_answer in reference_answers
        ]
        self._pool.wait(checks)
        return np.array([check.exception() is None and check.result() for check in checks], dtype=bool)

    def _submit(self, answer: str | None, reference_answer: str) -> PendingVerdict:
        known = self._domain.known(answer, reference_answer) if answer else False
        outcome = (
            self._pool.run(self._domain.check, answer, reference_answer) if known is None else _decided(_GRADES[known])
        )
        return PendingVerdict(self._pool, answer, outcome)


_GRADES = {True: ACCEPTED, False: REJECTED}


def _decided(value: Any) -> Future:
    outcome: Future = Future()
    outcome.set_result(value)
    return outcome


def _cpu_cores() -> int:
    """Cores this process may use, which in a container or a batch job are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
