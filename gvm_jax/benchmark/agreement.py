"""How far two engines are from one another on the same weights and samples."""

from collections.abc import Sequence

import numpy as np
from safetensors import safe_open

ALLOWED = 1e-4  # in float32


def logprob_difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """The largest |ours - theirs| of a token's log π, in nats."""
    return max(float(np.abs(np.subtract(a, b)).max()) for a, b in zip(ours, theirs, strict=True))


def norm_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest |ours / theirs - 1| of the norms that were measured; 0 stands for one that was not."""
    return max(abs(a / b - 1) if b else float("inf") for a, b in zip(ours, theirs, strict=True) if a or b)


def tensor_difference(ours: str, theirs: str) -> float:
    """‖ours − theirs‖₂ / ‖theirs‖₂ over all tensors of two safetensors files, summed in float64.

    Raises:
      ValueError: the files do not hold the same names.
    """
    with safe_open(ours, framework="numpy") as a, safe_open(theirs, framework="numpy") as b:
        if set(a.keys()) != set(b.keys()):
            raise ValueError(f"{ours} and {theirs} disagree on {sorted(set(a.keys()) ^ set(b.keys()))[:3]}")
        squares = np.zeros(2)
        for name in a.keys():
            x, y = (file.get_tensor(name).astype(np.float64) for file in (a, b))
            squares += ((x - y) ** 2).sum(), (y**2).sum()
    return float(np.sqrt(squares[0] / squares[1]))


def differences(ours: dict, theirs: dict) -> dict[str, float]:
    """What differs, in words, and by how much; from what two engines' runs of the workload `agreement` returned."""
    found = {
        "log-probabilities, largest |a - b| of a token, nats": logprob_difference(ours["logprobs"], theirs["logprobs"]),
        "gradient norms G of embed_tokens, largest |a/b - 1| of a sample": norm_difference(
            ours["norms"], theirs["norms"]
        ),
        "allocation gvm_paper, largest |a - b| of a count": float(
            np.abs(np.subtract(ours["allocation"], theirs["allocation"])).max()
        ),
    }
    for name, loss in theirs["losses"].items():
        found[f"loss of {name}, |a/b - 1|"] = abs(ours["losses"][name] / loss - 1)
        norm = theirs["gradient_norms"][name]
        found[f"norm of its gradient, |a/b - 1| ({name})"] = abs(ours["gradient_norms"][name] / norm - 1)
    for name, what in (("gradient", "clipped gradient of raft_pp"), ("update", "AdamW's first update of raft_pp")):
        found[f"{what}, ‖a - b‖/‖b‖ over all parameters"] = tensor_difference(
            ours["tensors"][name], theirs["tensors"][name]
        )
    return found
