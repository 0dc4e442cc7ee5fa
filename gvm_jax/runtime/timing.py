"""Seconds spent in each phase of a step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseTimer:
    """Adds up wall-clock seconds by phase: `with timer("rollout"): ...`.

    JAX returns before the device is done, so a phase should end with its arrays ready
    (`jax.block_until_ready`); else their time is counted in the phase that first waits for them. Phases do
    not nest: an inner phase's seconds would be counted in the outer one too.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Times the body, also where it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase since the last reset, in the order in which the phases first ran."""
        return dict(self._seconds)

    def reset(self) -> None:
        """Forgets all phases; call it at the start of a step."""
        self._seconds.clear()
