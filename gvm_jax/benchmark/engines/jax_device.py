"""Where an engine on JAX computes."""


def state() -> dict:
    """The "kind" of the first device, and "peak_bytes" of its own memory that arrays took; None of a CPU."""
    import jax

    first = jax.devices()[0]
    return {"kind": first.device_kind, "peak_bytes": (first.memory_stats() or {}).get("peak_bytes_in_use")}
