"""A policy of Hugging Face transformers on rows padded to a batch's longest, for tasks that train or score."""

import contextlib

import torch
from torch_device import DEVICE, IN_WORDS
from transformers import AutoModelForCausalLM, PreTrainedModel

CLIP_LOW = CLIP_HIGH = 0.2  # of the importance ratio, as gvm_jax/config/fields.py has them, and AdamW's settings
ADAMW = {"betas": (0.9, 0.999), "weight_decay": 0.01}
LEARNING_RATE = 1e-6


def load_model(workload: dict, dtype: str) -> PreTrainedModel:
    """On the device, with sdpa attention."""
    model = AutoModelForCausalLM.from_pretrained(
        workload["model"], dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    return model.to(DEVICE)


def given_pairs(workload: dict) -> list[tuple[list[int], list[int]]]:
    """Prompt and response of each given sample."""
    return list(zip(workload["prompts"], workload["responses"], strict=True))


def clipped_gain(logprobs: torch.Tensor, old: torch.Tensor, advantage: float = 1.0) -> torch.Tensor:
    """min(ratio·A, clip(ratio)·A) of each token (PPO, arXiv 1707.06347, equation 7)."""
    ratio = torch.exp(logprobs - old)
    return torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * advantage)


class PaddedPolicy:
    """float32 weights; autocast where the workload's dtype is another. Logits of response tokens alone.

    Attributes:
      model: in training mode (Qwen2.5 has no dropout).
      configured: how it was set up, in words.
    """

    def __init__(self, workload: dict, dtype: str = "float32"):
        self._pad_id, self._autocast = workload["pad_id"], dtype != workload["dtype"]
        self._compute = getattr(torch, workload["dtype"])
        self.model = load_model(workload, dtype).train()
        computed = f"autocast to {workload['dtype']}" if self._autocast else workload["dtype"]
        self.configured = f"{dtype} parameters, {computed}, sdpa attention, logits of response tokens only, {IN_WORDS}"

    def batch(self, pairs):
        """Token ids and the mask of tokens [B, L], padded on the right, and where the next token is of a response.

        Args:
          pairs: a prompt's and a response's token ids for each row.
        """
        width = max(len(prompt) + len(response) for prompt, response in pairs)
        ids = torch.full((len(pairs), width), self._pad_id)
        mask, predicts = torch.zeros_like(ids), torch.zeros(len(pairs), width - 1, dtype=torch.bool)
        for row, (prompt, response) in enumerate(pairs):
            end = len(prompt) + len(response)
            ids[row, :end] = torch.tensor(prompt + response)
            mask[row, :end] = 1
            predicts[row, len(prompt) - 1 : end - 1] = True
        # All ones let sdpa take its causal path, which is faster than one with a mask.
        mask = None if mask.all() else mask.to(DEVICE)
        return ids.to(DEVICE), mask, predicts.to(DEVICE)

    def logprobs(self, ids, mask, predicts) -> torch.Tensor:
        """log π of the batch's response tokens, row after row, float32; differentiable."""
        autocast = torch.autocast(DEVICE, dtype=self._compute)
        with autocast if self._autocast else contextlib.nullcontext():
            hidden = self.model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            logits = self.model.lm_head(hidden[:, :-1][predicts]).float()
        return -torch.nn.functional.cross_entropy(logits, ids[:, 1:][predicts], reduction="none")

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True, **ADAMW)

    def update(self, optimizer: torch.optim.Optimizer) -> float:
        """A step along the gradient that has been summed up, clipped; the gradient's norm before that."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0).item()
        optimizer.step()
        optimizer.zero_grad()
        return norm
