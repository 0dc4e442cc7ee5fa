"""The device that an engine on JAX computes on."""

import jax
from server import Engine


class JaxEngine(Engine):
    """On the first device."""

    def device(self) -> dict:
        first = jax.devices()[0]
        return {"kind": first.device_kind, "peak_bytes": (first.memory_stats() or {}).get("peak_bytes_in_use")}
