"""A policy in PyTorch on rows padded to a batch's longest: what the `hf` engines that train or score share."""

import contextlib

import torch_device


class PaddedPolicy:
    """float32 weights; autocast where the workload's dtype is another. Logits of response tokens alone.

    Attributes:
      model: of transformers, sdpa attention, in training mode (Qwen2.5 has no dropout).
      configured: how it was set up, in words.
      device: "cuda" or "cpu".
    """

    def __init__(self, workload: dict, dtype: str = "float32"):
        import torch
        from transformers import AutoModelForCausalLM

        self.device = torch_device.device()
        self._torch, self._pad_id, self._compute = torch, workload["pad_id"], workload["dtype"]
        self._autocast = dtype != workload["dtype"]
        self.model = AutoModelForCausalLM.from_pretrained(
            workload["model"], dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).train()
        self.model.to(self.device)
        computed = f"autocast to {workload['dtype']}" if self._autocast else workload["dtype"]
        self.configured = (
            f"{dtype} parameters, {computed}, sdpa attention, logits of response tokens only, {torch_device.in_words()}"
        )

    def batch(self, pairs):
        """Token ids and the mask of tokens [B, L], padded on the right, and where the next token is of a response.

        Args:
          pairs: a prompt's and a response's token ids for each row.
        """
        torch, width = self._torch, max(len(prompt) + len(response) for prompt, response in pairs)
        ids = torch.full((len(pairs), width), self._pad_id)
        mask, predicts = torch.zeros_like(ids), torch.zeros(len(pairs), width - 1, dtype=torch.bool)
        for row, (prompt, response) in enumerate(pairs):
            end = len(prompt) + len(response)
            ids[row, :end] = torch.tensor(prompt + response)
            mask[row, :end] = 1
            predicts[row, len(prompt) - 1 : end - 1] = True
        # All ones let sdpa take its causal path, which is faster than one with a mask.
        mask = None if mask.all() else mask.to(self.device)
        return ids.to(self.device), mask, predicts.to(self.device)

    def logprobs(self, ids, mask, predicts):
        """log π of the batch's response tokens, row after row, float32; differentiable."""
        torch = self._torch
        autocast = torch.autocast(self.device, dtype=getattr(torch, self._compute))
        with autocast if self._autocast else contextlib.nullcontext():
            hidden = self.model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden[:, :-1][predicts]).float()
        return -torch.nn.functional.cross_entropy(logits, ids[:, 1:][predicts], reduction="none")
