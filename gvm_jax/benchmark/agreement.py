"""Differences between two engines' results on the same weights and samples."""

from collections.abc import Sequence

import numpy as np
from safetensors import safe_open

ALLOWED = 1e-4  # in float32


def differences(ours: Sequence[dict], theirs: Sequence[dict]) -> dict[str, float]:
    """The differences that the results of two engines' runs have, by name.

    Of the workload `agreement`: all that a step computes with. Else "norms differ", the largest |ours/theirs - 1| of a
    gradient norm; "log π differs", the mean |ours - theirs| of a token, in nats; and "updates differ", the largest
    |ours/theirs - 1| of all updates' losses and gradient norms, which from the second update on also holds the
    parameters that the optimizers made. Nothing where samples were drawn.
    """
    a, b = ours[0], theirs[0]
    if "tensors" in a and "tensors" in b:
        return step_differences(a, b)
    found = {}
    if "norms" in a and "norms" in b:
        found["norms differ"] = norm_difference(a["norms"], b["norms"])
    if "logprobs" in a and "logprobs" in b:
        found["log π differs"] = float(np.mean(token_differences(a["logprobs"], b["logprobs"])))
    if all("loss" in run for run in (*ours, *theirs)):
        pairs = [(x[name], y[name]) for x, y in zip(ours, theirs, strict=True) for name in ("loss", "gradient_norm")]
        found["updates differ"] = max(abs(x / y - 1) for x, y in pairs)
    return found


def step_differences(ours: dict, theirs: dict) -> dict[str, float]:
    """Of a run each of the workload `agreement`."""
    counts = np.abs(np.subtract(ours["allocation"], theirs["allocation"]))
    found = {
        "log-probabilities, largest |a - b| of a token, nats": float(
            token_differences(ours["logprobs"], theirs["logprobs"]).max()
        ),
        "gradient norms G of embed_tokens, largest |a/b - 1| of a sample": norm_difference(
            ours["norms"], theirs["norms"]
        ),
        "allocation gvm_paper, largest |a - b| of a count": float(counts.max()),
    }
    for name, loss in theirs["losses"].items():
        found[f"loss of {name}, |a/b - 1|"] = abs(ours["losses"][name] / loss - 1)
        norm = theirs["gradient_norms"][name]
        found[f"norm of its gradient, |a/b - 1| ({name})"] = abs(ours["gradient_norms"][name] / norm - 1)
    for name, quantity in (("gradient", "clipped gradient of raft_pp"), ("update", "AdamW's first update of raft_pp")):
        difference = tensor_difference(ours["tensors"][name], theirs["tensors"][name])
        found[f"{quantity}, ‖a - b‖/‖b‖ over all parameters"] = difference
    return found


def token_differences(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> np.ndarray:
    """|ours - theirs| of every token's log π, in nats."""
    return np.concatenate([np.abs(np.subtract(a, b)) for a, b in zip(ours, theirs, strict=True)])


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
