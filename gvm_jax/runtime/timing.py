"""Seconds spent in each phase of a step."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class PhaseTimer:
    """Adds up wall-clock seconds by phase: `with timer("rollout"): ...`.

    JAX returns before the device is done, so a phase should end with its arrays ready
    (`jax.block_until_ready`); else their time is counted in the phase that first waits for them. Phases do
    not nest: an inner phase's seconds would be counted in the outer one too.

    Args:
      compile_seconds: gives the seconds of compilations so far (`compilations.Compilations.seconds`), which are counted
        apart from their phase, as the phase "compile".

    Attributes:
      on_phase: called with a phase's name when it begins.
    """

    def __init__(self, compile_seconds: Callable[[], float] = lambda: 0.0) -> None:
        self._seconds: dict[str, float] = {}
        self._compile_seconds = compile_seconds
        self.on_phase: Callable[[str], None] = lambda phase: None

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Times the body, also where it raises."""
        self.on_phase(phase)
        start, compiled_before = time.perf_counter(), self._compile_seconds()
        try:
            yield
        finally:
            spent, compiled = time.perf_counter() - start, self._compile_seconds() - compiled_before
            self._add(phase, spent - compiled)
            if compiled:
                self._add("compile", compiled)

    def _add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase since the last reset, in the order in which the phases first ran."""
        return dict(self._seconds)

    def reset(self) -> None:
        """Forgets all phases; call it at the start of a step."""
        self._seconds.clear()
