"""Samples shared out over replicas, each a scheduler with slots and pages of its own."""

from collections.abc import Sequence

from gvm_jax.rollout.scheduler import Plan, Request, Scheduler


class Replicas:
    """Requests go to the replica with the least left to do; one that runs dry takes waiting samples from another.

    Which replica a sample decodes on changes no token of it.
    """

    def __init__(self, schedulers: Sequence[Scheduler]):
        self.schedulers = list(schedulers)

    def request(self, request: Request) -> None:
        """Queues the samples of a prompt, all at one replica: its keys and values are computed once."""
        min(self.schedulers, key=lambda scheduler: scheduler.expected_tokens).request(request)

    @property
    def done(self) -> bool:
        """Every sample requested so far has finished."""
        return all(scheduler.done for scheduler in self.schedulers)

    @property
    def preemptions(self) -> int:
        """Samples that lost their pages and were computed again."""
        return sum(scheduler.preemptions for scheduler in self.schedulers)

    def plan(self, chunk_tokens: int, batch_tokens: int) -> list[Plan]:
        """The next block of each replica; arguments as of `Scheduler.plan`."""
        self._balance()
        return [scheduler.plan(chunk_tokens, batch_tokens) for scheduler in self.schedulers]

    def _balance(self) -> None:
        """Moves samples that would wait for a slot to slots that would stay free."""

        def spare(scheduler: Scheduler) -> int:
            return scheduler.free_slots - scheduler.waiting

        while True:
            idle, crowded = max(self.schedulers, key=spare), min(self.schedulers, key=spare)
            if spare(idle) <= 0 or spare(crowded) >= 0:
                return
            idle.request(crowded.give(min(spare(idle), -spare(crowded))))
