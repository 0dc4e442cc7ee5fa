"""`generate` of Hugging Face transformers on PyTorch."""

import time

import torch_device
from batches import sample_in_batches
from protocol import serve


class HuggingFace:
    """Batches of `slots` rows, left-padded; each batch runs until its last row ends.

    A prompt is a row for each of its samples, which is what `num_return_sequences` does too.
    """

    def __init__(self, workload: dict):
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        self._device = torch_device.device()
        self._workload, self._torch = workload, torch
        self._prefill_seconds, self._steps = 0.0, 0  # to the first token's logits, and batches' longest rows
        self.model = AutoModelForCausalLM.from_pretrained(
            workload["model"], dtype=getattr(torch, workload["dtype"]), attn_implementation="sdpa"
        ).eval()
        self.model.to(self._device)
        # In place of the folder's: that of an instruct model cuts the distribution and penalises repetitions.
        self.model.generation_config = GenerationConfig()
        self._options = {
            "do_sample": True,
            "temperature": workload["temperature"],
            "top_k": 0,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            "eos_token_id": workload["stop_ids"] or None,
            "pad_token_id": workload["pad_id"],
        }
        self.configured = (
            f"{workload['dtype']}, sdpa attention, inference mode, {torch_device.in_words()}, "
            f"batches of {workload['slots']} left-padded rows sorted by prompt length; a prompt is computed once "
            "for each of its samples"
        )

    def warm_up(self) -> None:
        """Two tokens of each row: nothing is compiled."""
        self._run(self._workload["counts"], 0, 2)

    def run(self, counts: list[int], seed: int) -> dict:
        """As many calls of `generate` as there are batches."""
        return self._run(counts, seed, self._workload["max_new_tokens"])

    def _run(self, counts: list[int], seed: int, new_tokens: int) -> dict:
        self._torch.manual_seed(seed)
        self._prefill_seconds = self._steps = 0
        lengths = [len(response) for response in self.sample(counts, new_tokens)]
        return {"lengths": lengths, "prefill_seconds": self._prefill_seconds, "steps": self._steps}

    def sample(self, counts: list[int], new_tokens: int) -> list[list[int]]:
        """`counts[i]` responses of prompt i, ordered by prompt, of up to so many tokens, stop token included."""
        workload = self._workload
        return sample_in_batches(
            workload["prompts"], counts, workload["slots"], lambda prompts: self._generate(prompts, new_tokens)
        )

    def _generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        torch, stops = self._torch, set(self._workload["stop_ids"])
        width, first = max(map(len, prompts)), []

        def note_time(_, scores):
            if not first:
                torch_device.wait()
            first.append(time.perf_counter())
            return scores

        ids = torch.tensor([[self._workload["pad_id"]] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        begin = time.perf_counter()
        with torch.inference_mode():
            tokens = self.model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                max_new_tokens=new_tokens,
                logits_processor=[note_time],
                **self._options,
            )
        self._prefill_seconds += first[0] - begin
        self._steps += tokens.shape[1] - width
        responses = tokens[:, width:].tolist()
        return [row[: next((i + 1 for i, token in enumerate(row) if token in stops), len(row))] for row in responses]


if __name__ == "__main__":
    serve(HuggingFace, ("torch", "transformers"), torch_device.state)
