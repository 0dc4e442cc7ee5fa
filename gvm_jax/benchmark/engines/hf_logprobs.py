"""Log-probabilities of given responses on PyTorch: batches padded to their longest row, inference mode."""

import torch_device
from padded import PaddedPolicy
from protocol import serve


class HuggingFaceLogprobs:
    """Weights in the workload's dtype, rows sorted by length: the least padding."""

    def __init__(self, workload: dict):
        import torch

        self._torch, self._policy = torch, PaddedPolicy(workload, workload["dtype"])
        self._pairs = list(zip(workload["prompts"], workload["responses"], strict=True))
        size = workload["micro_batch"]
        order = sorted(range(len(self._pairs)), key=lambda i: sum(map(len, self._pairs[i])))
        self._rows = [order[begin : begin + size] for begin in range(0, len(order), size)]
        self.configured = (
            f"{self._policy.configured}, inference mode, batches of {size} rows sorted by length, padded to their "
            "longest"
        )

    def warm_up(self) -> None:
        """A pass."""
        self.run([], 0)

    def run(self, counts: list[int], seed: int) -> dict:
        """One forward pass over all responses."""
        found, computed = {}, 0
        with self._torch.inference_mode():
            for rows in self._rows:
                batch = self._policy.batch([self._pairs[row] for row in rows])
                computed += batch[0].numel()
                lengths = [len(self._pairs[row][1]) for row in rows]
                found |= zip(rows, self._policy.logprobs(*batch).split(lengths), strict=True)
        lengths = [len(response) for _, response in self._pairs]
        useful = sum(map(sum, (map(len, pair) for pair in self._pairs))) / computed
        logprobs = [found[row].tolist() for row in range(len(lengths))]
        return {"logprobs": logprobs, "packing_efficiency": useful, "lengths": lengths, "prefill_seconds": None}


if __name__ == "__main__":
    serve(HuggingFaceLogprobs, ("torch", "transformers"), torch_device.state)
