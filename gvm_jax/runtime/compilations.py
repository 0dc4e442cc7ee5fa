"""How long this process has compiled, and whether it is compiling."""

import functools

import jax

_LOWERED, _COMPILED = "jaxpr_to_mlir_module_duration", "backend_compile_duration"  # of each program, in this order


class Compilations:
    """Counts the seconds of lowering and compiling, reads from the persistent cache included."""

    def __init__(self) -> None:
        self._seconds, self._compiling = 0.0, False

    def seconds(self) -> float:
        return self._seconds

    def compiling(self) -> bool:
        return self._compiling

    def _listen(self, event: str, seconds: float, **_) -> None:
        if event.endswith((_LOWERED, _COMPILED)):
            self._seconds += seconds
            self._compiling = event.endswith(_LOWERED)


@functools.cache
def compilations() -> Compilations:
    """Those of this process since the first call; JAX's listeners cannot be taken away, so there is one."""
    found = Compilations()
    jax.monitoring.register_event_duration_secs_listener(found._listen)
    return found
