"""A RAFT++ update on PyTorch: micro-batches padded to their longest row, fused AdamW."""

import torch_device
from padded import PaddedPolicy
from protocol import serve


class HuggingFaceUpdate:
    """float32 master weights; autocast where the workload's dtype is another."""

    def __init__(self, workload: dict):
        import torch

        self._workload, self._torch, self._policy = workload, torch, PaddedPolicy(workload)
        # The settings of gvm_jax/config/fields.py.
        self._optimizer = torch.optim.AdamW(
            self._policy.model.parameters(), lr=1e-6, betas=(0.9, 0.999), weight_decay=0.01, fused=True
        )
        size = workload["micro_batch"]
        pairs = list(zip(workload["prompts"], workload["responses"], strict=True))
        self._batches = [self._policy.batch(pairs[begin : begin + size]) for begin in range(0, len(pairs), size)]
        with torch.no_grad():
            self._old = [self._policy.logprobs(*batch) for batch in self._batches]
        tokens = sum(ids.numel() for ids, *_ in self._batches)
        self._useful = sum(len(prompt) + len(response) for prompt, response in pairs) / tokens
        self.configured = (
            f"{self._policy.configured}, fused AdamW, no gradient checkpointing, micro-batches of {size} rows in the "
            "data's order, padded to their longest"
        )

    def warm_up(self) -> None:
        """An update."""
        self.run([], 0)

    def run(self, counts: list[int], seed: int) -> dict:
        """An update on all responses; the loss is -sum of clipped ratios / (responses x the longest one)."""
        torch, lengths = self._torch, [len(response) for response in self._workload["responses"]]
        denominator, total = len(lengths) * max(lengths), 0.0
        for batch, old in zip(self._batches, self._old, strict=True):
            ratio = torch.exp(self._policy.logprobs(*batch) - old)
            loss = -torch.minimum(ratio, ratio.clamp(0.8, 1.2)).sum() / denominator
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(self._policy.model.parameters(), 1.0).item()
        self._optimizer.step()
        self._optimizer.zero_grad()
        torch_device.wait()
        return {
            "loss": total, "gradient_norm": norm, "packing_efficiency": self._useful, "lengths": lengths,
            "prefill_seconds": None,
        }  # fmt: skip


if __name__ == "__main__":
    serve(HuggingFaceUpdate, ("torch", "transformers"), torch_device.state)
