"""The device that an engine on PyTorch computes on: the GPU where there is one, else all cores of the CPU."""

import os

import torch
from server import Engine

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IN_WORDS = torch.cuda.get_device_name(0) if DEVICE == "cuda" else f"{os.cpu_count()} threads"


def wait() -> None:
    """Until all that was asked for is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def state() -> dict:
    """As `Engine.device`; of a GPU the memory that tensors took."""
    if DEVICE == "cpu":
        return {"kind": "cpu", "peak_bytes": None}
    return {"kind": torch.cuda.get_device_name(0), "peak_bytes": torch.cuda.max_memory_allocated()}


class TorchEngine(Engine):
    """On `DEVICE`, with every core."""

    packages = ("torch", "transformers")

    def __init__(self, workload: dict):
        super().__init__(workload)
        torch.set_num_threads(os.cpu_count())

    def device(self) -> dict:
        return state()
