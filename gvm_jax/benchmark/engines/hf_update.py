"""A RAFT++ update on PyTorch: micro-batches padded to their longest row, fused AdamW."""

import contextlib
import os

from protocol import serve


class HuggingFaceUpdate:
    """float32 master weights; autocast where the workload's dtype is another. Logits of response tokens alone."""

    def __init__(self, workload: dict):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(os.cpu_count())
        self._workload, self._torch = workload, torch
        self._model = AutoModelForCausalLM.from_pretrained(
            workload["model"], dtype=torch.float32, attn_implementation="sdpa"
        ).train()
        # The settings of configs/default.py.
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=1e-6, betas=(0.9, 0.999), weight_decay=0.01, fused=True
        )
        size = workload["micro_batch"]
        pairs = list(zip(workload["prompts"], workload["responses"], strict=True))
        self._batches = [self._batch(pairs[begin : begin + size]) for begin in range(0, len(pairs), size)]
        with torch.no_grad():
            self._old = [self._logprobs(*batch) for batch in self._batches]
        tokens = sum(ids.numel() for ids, *_ in self._batches)
        self._useful = sum(len(prompt) + len(response) for prompt, response in pairs) / tokens
        computed = "float32" if workload["dtype"] == "float32" else f"autocast to {workload['dtype']}"
        self.configured = (
            f"float32 parameters, {computed}, fused AdamW, sdpa attention, no gradient checkpointing, logits of "
            f"response tokens only, micro-batches of {size} rows in the data's order, padded to their longest, "
            f"{torch.get_num_threads()} threads"
        )

    def warm_up(self) -> None:
        """An update."""
        self.run([], 0)

    def run(self, counts: list[int], seed: int) -> dict:
        """An update on all responses; the loss is -sum of clipped ratios / (responses x the longest one)."""
        torch, lengths = self._torch, [len(response) for response in self._workload["responses"]]
        denominator, total = len(lengths) * max(lengths), 0.0
        for batch, old in zip(self._batches, self._old, strict=True):
            ratio = torch.exp(self._logprobs(*batch) - old)
            loss = -torch.minimum(ratio, ratio.clamp(0.8, 1.2)).sum() / denominator
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0).item()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {
            "loss": total, "gradient_norm": norm, "useful_tokens": self._useful, "lengths": lengths,
            "prefill_seconds": None,
        }  # fmt: skip

    def _batch(self, pairs):
        """Token ids and the mask of tokens [B, L], padded on the right, and where the next token is of a response."""
        torch, width = self._torch, max(len(prompt) + len(response) for prompt, response in pairs)
        ids = torch.full((len(pairs), width), self._workload["pad_id"])
        mask, predicts = torch.zeros_like(ids), torch.zeros(len(pairs), width - 1, dtype=torch.bool)
        for row, (prompt, response) in enumerate(pairs):
            end = len(prompt) + len(response)
            ids[row, :end] = torch.tensor(prompt + response)
            mask[row, :end] = 1
            predicts[row, len(prompt) - 1 : end - 1] = True
        # All ones let sdpa take its causal path, which is faster than one with a mask.
        return ids, None if mask.all() else mask, predicts

    def _logprobs(self, ids, mask, predicts):
        torch = self._torch
        if self._workload["dtype"] == "float32":
            computed = contextlib.nullcontext()
        else:
            computed = torch.autocast("cpu", dtype=getattr(torch, self._workload["dtype"]))
        with computed:
            hidden = self._model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            logits = self._model.lm_head(hidden[:, :-1][predicts]).float()
        return -torch.nn.functional.cross_entropy(logits, ids[:, 1:][predicts], reduction="none")


if __name__ == "__main__":
    serve(HuggingFaceUpdate, ("torch", "transformers"))
