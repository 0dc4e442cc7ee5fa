"""One forward and one backward pass a sample on PyTorch, as the reference implementation measures gradient norms."""

import torch_device
from protocol import serve


class HuggingFaceNorms:
    """Autograd's gradient of the input embeddings, with every other parameter frozen, at batch 1."""

    def __init__(self, workload: dict, model=None):
        import torch
        from transformers import AutoModelForCausalLM

        self._device = torch_device.device()
        self._workload, self._torch = workload, torch
        self._model = (
            model
            or AutoModelForCausalLM.from_pretrained(
                workload["model"], dtype=getattr(torch, workload["dtype"]), attn_implementation="sdpa"
            ).eval()
        )
        self._model.to(self._device)
        self._weight = self._model.get_input_embeddings().weight
        for parameter in self._model.parameters():
            parameter.requires_grad = parameter is self._weight
        self.configured = (
            f"{workload['dtype']}, sdpa attention, torch.autograd.grad of embed_tokens, a sample at a time, "
            f"{torch_device.in_words()}"
        )

    def warm_up(self) -> None:
        """A sample: nothing is compiled."""
        self.norm(self._workload["prompts"][0], self._workload["responses"][0])

    def run(self, counts: list[int], seed: int) -> dict:
        """Each sample is measured once."""
        samples = zip(self._workload["prompts"], self._workload["responses"], strict=True)
        norms = [self.norm(prompt, response) for prompt, response in samples]
        return {"norms": norms, "lengths": [len(r) for r in self._workload["responses"]], "prefill_seconds": None}

    def norm(self, prompt: list[int], response: list[int]) -> float:
        """‖∂(-Σ log π) / ∂ embed_tokens‖₂ of a response, at temperature 1."""
        torch = self._torch
        ids = torch.tensor([prompt + response], device=self._device)
        logits = self._model(input_ids=ids, use_cache=False).logits
        logprobs = torch.log_softmax(logits, dim=-1)[0, len(prompt) - 1 : -1]
        loss = -logprobs.gather(1, ids[0, len(prompt) :, None]).sum()
        (gradient,) = torch.autograd.grad(loss, [self._weight])
        return torch.linalg.vector_norm(gradient, dtype=torch.float32).item()


if __name__ == "__main__":
    serve(HuggingFaceNorms, ("torch", "transformers"), torch_device.state)
