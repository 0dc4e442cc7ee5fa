"""Where an engine on PyTorch computes: the GPU where there is one, else all cores of the CPU."""

import os


def device() -> str:
    """ "cuda" or "cpu", for tensors and `Module.to`; PyTorch is set to use every core."""
    import torch

    torch.set_num_threads(os.cpu_count())
    return "cuda" if torch.cuda.is_available() else "cpu"


def in_words() -> str:
    """For a line about an engine."""
    import torch

    return state()["kind"] if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"


def wait() -> None:
    """Until all that was asked for is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def state() -> dict:
    """The "kind" of the device, and "peak_bytes" of its own memory that tensors took; None of a CPU."""
    import torch

    if not torch.cuda.is_available():
        return {"kind": "cpu", "peak_bytes": None}
    return {"kind": torch.cuda.get_device_name(0), "peak_bytes": torch.cuda.max_memory_allocated()}
