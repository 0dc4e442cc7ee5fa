"""Rollouts, gradient norms, log-probabilities and updates of Hugging Face transformers on PyTorch."""

import time

import torch
from batches import sample_in_batches
from hf_model import PaddedPolicy, clipped_gain, given_pairs, load_model
from torch_device import DEVICE, IN_WORDS, TorchEngine, wait
from transformers import GenerationConfig


class Rollouts(TorchEngine):
    """Batches of `slots` rows, left-padded; each batch runs until its last row ends.

    A prompt is a row for each of its samples, which is what `num_return_sequences` does too.
    """

    def __init__(self, workload: dict):
        super().__init__(workload)
        self.prefill_seconds, self.steps = 0.0, 0  # to the first token's logits, and batches' longest rows
        self.model = load_model(workload, workload["dtype"]).eval()
        # In place of the folder's: that of an instruct model cuts the distribution and penalises repetitions.
        self.model.generation_config = GenerationConfig()
        self.options = {
            "do_sample": True,
            "temperature": workload["temperature"],
            "top_k": 0,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            "eos_token_id": workload["stop_ids"] or None,
            "pad_token_id": workload["pad_id"],
        }
        self.configured = (
            f"{workload['dtype']}, sdpa attention, inference mode, {IN_WORDS}, batches of {workload['slots']} "
            "left-padded rows sorted by prompt length; a prompt is computed once for each of its samples"
        )

    def warm_up(self) -> None:
        """Two tokens of each row: nothing is compiled."""
        self.sample(self.workload["counts"], 2)

    def run(self, counts: list[int], seed: int) -> dict:
        torch.manual_seed(seed)
        self.prefill_seconds, self.steps = 0.0, 0
        lengths = [len(response) for response in self.sample(counts, self.workload["max_new_tokens"])]
        return {"lengths": lengths, "prefill_seconds": self.prefill_seconds, "steps": self.steps}

    def sample(self, counts: list[int], new_tokens: int) -> list[list[int]]:
        """`counts[i]` responses of prompt i, ordered by prompt, of up to so many tokens, stop token included."""
        return sample_in_batches(
            self.workload["prompts"], counts, self.workload["slots"], lambda rows: self._generate(rows, new_tokens)
        )

    def _generate(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        width, stops, first = max(map(len, prompts)), set(self.workload["stop_ids"]), []

        def note_time(_, scores):
            if not first:
                wait()
            first.append(time.perf_counter())
            return scores

        ids = torch.tensor([[self.workload["pad_id"]] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        begin = time.perf_counter()
        with torch.inference_mode():
            tokens = self.model.generate(
                input_ids=ids.to(DEVICE),
                attention_mask=mask.to(DEVICE),
                max_new_tokens=new_tokens,
                logits_processor=[note_time],
                **self.options,
            )
        self.prefill_seconds += first[0] - begin
        self.steps += tokens.shape[1] - width
        responses = tokens[:, width:].tolist()
        return [row[: next((i + 1 for i, token in enumerate(row) if token in stops), len(row))] for row in responses]


class Norms(TorchEngine):
    """One forward and one backward pass a sample, as the reference implementation of arXiv 2505.02391 has it.

    Autograd's gradient of the input embeddings, with every other parameter frozen, at batch 1.
    """

    def __init__(self, workload: dict, model=None):
        super().__init__(workload)
        self.model = model or load_model(workload, workload["dtype"]).eval()
        self.weight = self.model.get_input_embeddings().weight
        for parameter in self.model.parameters():
            parameter.requires_grad = parameter is self.weight
        self.configured = (
            f"{workload['dtype']}, sdpa attention, torch.autograd.grad of embed_tokens, a sample at a time, {IN_WORDS}"
        )

    def warm_up(self) -> None:
        """A sample: nothing is compiled."""
        self.norm(*given_pairs(self.workload)[0])

    def run(self, counts: list[int], seed: int) -> dict:
        return {"norms": [self.norm(*pair) for pair in given_pairs(self.workload)]}

    def norm(self, prompt: list[int], response: list[int]) -> float:
        """‖∂(-Σ log π) / ∂ embed_tokens‖₂ of a response, at temperature 1."""
        ids = torch.tensor([prompt + response], device=DEVICE)
        logprobs = torch.log_softmax(self.model(input_ids=ids, use_cache=False).logits, dim=-1)
        loss = -logprobs[0, len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None]).sum()
        (gradient,) = torch.autograd.grad(loss, [self.weight])
        return torch.linalg.vector_norm(gradient, dtype=torch.float32).item()


class Logprobs(TorchEngine):
    """Weights in the workload's dtype, inference mode, rows sorted by length: the least padding."""

    def __init__(self, workload: dict):
        super().__init__(workload)
        self.policy, self.pairs = PaddedPolicy(workload, workload["dtype"]), given_pairs(workload)
        size = workload["micro_batch"]
        order = sorted(range(len(self.pairs)), key=lambda i: sum(map(len, self.pairs[i])))
        self.rows = [order[begin : begin + size] for begin in range(0, len(order), size)]
        self.configured = f"{self.policy.configured}, inference mode, rows sorted by length, {size} a padded batch"

    def run(self, counts: list[int], seed: int) -> dict:
        found, computed = {}, 0
        with torch.inference_mode():
            for rows in self.rows:
                batch = self.policy.batch([self.pairs[row] for row in rows])
                computed += batch[0].numel()
                lengths = [len(self.pairs[row][1]) for row in rows]
                found |= zip(rows, self.policy.logprobs(*batch).split(lengths), strict=True)
        useful = sum(len(prompt) + len(response) for prompt, response in self.pairs) / computed
        return {"logprobs": [found[row].tolist() for row in sorted(found)], "packing_efficiency": useful}


class Update(TorchEngine):
    """A RAFT++ update: float32 master weights, autocast where the workload's dtype is another."""

    def __init__(self, workload: dict):
        super().__init__(workload)
        self.policy, pairs, size = PaddedPolicy(workload), given_pairs(workload), workload["micro_batch"]
        self.optimizer = self.policy.optimizer()
        self.batches = [self.policy.batch(pairs[begin : begin + size]) for begin in range(0, len(pairs), size)]
        with torch.no_grad():
            self.old = [self.policy.logprobs(*batch) for batch in self.batches]
        computed = sum(ids.numel() for ids, *_ in self.batches)
        self.useful = sum(len(prompt) + len(response) for prompt, response in pairs) / computed
        self.configured = (
            f"{self.policy.configured}, fused AdamW, no gradient checkpointing, micro-batches of {size} rows in the "
            "data's order, padded to their longest"
        )

    def run(self, counts: list[int], seed: int) -> dict:
        """An update on all responses; the loss is -sum of clipped ratios / (responses x the longest one)."""
        lengths, total = [len(response) for response in self.workload["responses"]], 0.0
        for batch, old in zip(self.batches, self.old, strict=True):
            loss = -clipped_gain(self.policy.logprobs(*batch), old).sum() / (len(lengths) * max(lengths))
            loss.backward()
            total += loss.item()
        norm = self.policy.update(self.optimizer)
        wait()
        return {"loss": total, "gradient_norm": norm, "packing_efficiency": self.useful}
