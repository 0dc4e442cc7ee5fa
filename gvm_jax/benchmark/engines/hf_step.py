"""A whole GVM step in PyTorch, from the parts that its authors' code has: each the `hf` engine of its own workload."""

import contextlib
import time

import torch_device
from hf_engine import HuggingFace
from hf_norms import HuggingFaceNorms
from padded import PaddedPolicy
from paper_allocation import allocate
from protocol import serve


class HuggingFaceStep:
    """Pilots, norms, allocation, rollouts, grades and a RAFT++ update on the accepted fresh samples.

    float32 master weights with autocast for the update; samples and norms take a copy in the workload's dtype, which
    is made anew after it. What is sampled is trained on as it is: no text is tokenised again.
    """

    def __init__(self, workload: dict):
        import torch
        from transformers import AutoTokenizer

        self._workload, self._torch = workload, torch
        self._tokenizer = AutoTokenizer.from_pretrained(workload["model"])
        self._sampler = HuggingFace(workload)
        self._norms = HuggingFaceNorms(workload, self._sampler.model)
        self._policy = PaddedPolicy(workload)
        # The settings of gvm_jax/config/fields.py.
        self._optimizer = torch.optim.AdamW(
            self._policy.model.parameters(), lr=1e-6, betas=(0.9, 0.999), weight_decay=0.01, fused=True
        )
        self.configured = (
            f"samples and norms: {self._sampler.configured}; norms a sample at a time; math-verify in this process; "
            f"update: {self._policy.configured}, fused AdamW, micro-batches of {workload['micro_batch']} accepted rows"
        )

    def warm_up(self) -> None:
        """A step of short samples."""
        self._step(0, 4)

    def run(self, counts: list[int], seed: int) -> dict:
        """A step."""
        return self._step(seed, self._workload["max_new_tokens"])

    def _step(self, seed: int, new_tokens: int) -> dict:
        workload, phases = self._workload, {}

        @contextlib.contextmanager
        def timed(phase: str):
            begin = time.perf_counter()
            yield
            torch_device.wait()
            phases[phase] = phases.get(phase, 0.0) + time.perf_counter() - begin

        self._torch.manual_seed(seed)
        prompts, pilots = workload["prompts"], workload["pilot_samples"]
        with timed("rollout"):
            samples = self._sampler.sample([pilots] * len(prompts), new_tokens)
        with timed("reward"):
            accepted = self._grade([pilots] * len(prompts), samples)
        with timed("allocation"):
            norms = [
                self._norms.norm(prompts[i // pilots], sample) if is_right else 0.0
                for i, (sample, is_right) in enumerate(zip(samples, accepted, strict=True))
            ]
            groups = [i // pilots for i in range(len(samples))]
            fresh = allocate(norms, accepted, groups, sum(workload["counts"]) - len(samples))
        lengths, right = [len(sample) for sample in samples], sum(accepted)
        with timed("rollout"):
            samples = self._sampler.sample(fresh, new_tokens)
        with timed("reward"):
            accepted = self._grade(fresh, samples)
        with timed("update"):
            self._update(fresh, samples, accepted)
        lengths += [len(sample) for sample in samples]
        return {"lengths": lengths, "accepted": right + sum(accepted), "phases": phases, "prefill_seconds": None}

    def _grade(self, counts: list[int], samples: list[list[int]]) -> list[bool]:
        """The call of the authors' code: the reference answer in a box, accepted if math-verify says so."""
        from math_verify import parse, verify

        references = [
            reference for reference, count in zip(self._workload["golds"], counts, strict=True) for _ in range(count)
        ]
        texts = self._tokenizer.batch_decode(samples, skip_special_tokens=True)
        return [
            verify(parse(rf"\boxed{{{reference}}}"), parse(text))
            for reference, text in zip(references, texts, strict=True)
        ]

    def _update(self, counts: list[int], samples: list[list[int]], accepted: list[bool]) -> None:
        """One clipped step on -mean over prompts of the mean over their accepted samples."""
        torch, workload = self._torch, self._workload
        groups = [i for i, count in enumerate(counts) for _ in range(count)]
        rows = [i for i, right in enumerate(accepted) if right]
        if not rows:
            return
        kept = [groups[i] for i in rows]
        for begin in range(0, len(rows), workload["micro_batch"]):
            part = rows[begin : begin + workload["micro_batch"]]
            batch = self._policy.batch([(workload["prompts"][groups[i]], samples[i]) for i in part])
            logprobs = self._policy.logprobs(*batch)
            ratio = torch.exp(logprobs - logprobs.detach())  # one update a step: the old policy is this one
            gains = torch.minimum(ratio, ratio.clamp(0.8, 1.2)).split([len(samples[i]) for i in part])
            loss = -sum(gain.sum() / kept.count(groups[i]) for gain, i in zip(gains, part, strict=True))
            (loss / (len(counts) * workload["max_new_tokens"])).backward()
        torch.nn.utils.clip_grad_norm_(self._policy.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            for copy, master in zip(self._sampler.model.parameters(), self._policy.model.parameters(), strict=True):
                copy.copy_(master)


if __name__ == "__main__":
    serve(HuggingFaceStep, ("torch", "transformers", "math-verify"), torch_device.state)
