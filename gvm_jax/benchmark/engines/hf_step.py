"""A whole GVM step in PyTorch, from the parts that its authors' code has: each the `hf` engine of its own workload."""

import contextlib
import time

import torch
from hf_model import PaddedPolicy, clipped_gain
from hf_tasks import Norms, Rollouts
from math_verify import parse, verify
from paper_allocation import allocate
from torch_device import TorchEngine, wait
from transformers import AutoTokenizer


class Step(TorchEngine):
    """Pilots, norms, allocation, rollouts, grades and a RAFT++ update on the accepted fresh samples.

    float32 master weights with autocast for the update; samples and norms take a copy in the workload's dtype, which
    is made anew after it. What is sampled is trained on as it is: no text is tokenised again.
    """

    packages = ("torch", "transformers", "math-verify")

    def __init__(self, workload: dict):
        super().__init__(workload)
        self.tokenizer = AutoTokenizer.from_pretrained(workload["model"])
        self.sampler, self.policy = Rollouts(workload), PaddedPolicy(workload)
        self.norms, self.optimizer = Norms(workload, self.sampler.model), self.policy.optimizer()
        self.configured = (
            f"samples and norms: {self.sampler.configured}; norms a sample at a time; math-verify in this process; "
            f"update: {self.policy.configured}, fused AdamW, micro-batches of {workload['micro_batch']} accepted rows"
        )

    def warm_up(self) -> None:
        self._step(0, 4)

    def run(self, counts: list[int], seed: int) -> dict:
        return self._step(seed, self.workload["max_new_tokens"])

    def _step(self, seed: int, new_tokens: int) -> dict:
        workload, phases = self.workload, {}

        @contextlib.contextmanager
        def timed(phase: str):
            begin = time.perf_counter()
            yield
            wait()
            phases[phase] = phases.get(phase, 0.0) + time.perf_counter() - begin

        torch.manual_seed(seed)
        prompts, pilots = workload["prompts"], workload["pilot_samples"]
        with timed("rollout"):
            samples = self.sampler.sample([pilots] * len(prompts), new_tokens)
        with timed("reward"):
            accepted = self._grade([pilots] * len(prompts), samples)
        with timed("allocation"):
            norms = [
                self.norms.norm(prompts[i // pilots], sample) if is_right else 0.0
                for i, (sample, is_right) in enumerate(zip(samples, accepted, strict=True))
            ]
            groups = [i // pilots for i in range(len(samples))]
            fresh = allocate(norms, accepted, groups, sum(workload["counts"]) - len(samples))
        lengths, right = [len(sample) for sample in samples], sum(accepted)
        with timed("rollout"):
            samples = self.sampler.sample(fresh, new_tokens)
        with timed("reward"):
            accepted = self._grade(fresh, samples)
        with timed("update"):
            self._update(fresh, samples, accepted)
        lengths += [len(sample) for sample in samples]
        return {"lengths": lengths, "accepted": right + sum(accepted), "phases": phases}

    def _grade(self, counts: list[int], samples: list[list[int]]) -> list[bool]:
        """The call of the authors' code: the reference answer in a box, accepted if math-verify says so."""
        references = zip(self.workload["reference_answers"], counts, strict=True)
        boxed = [rf"\boxed{{{reference}}}" for reference, count in references for _ in range(count)]
        texts = self.tokenizer.batch_decode(samples, skip_special_tokens=True)
        return [verify(parse(reference), parse(text)) for reference, text in zip(boxed, texts, strict=True)]

    def _update(self, counts: list[int], samples: list[list[int]], accepted: list[bool]) -> None:
        """One clipped step on -mean over prompts of the mean over their accepted samples."""
        workload = self.workload
        groups = [i for i, count in enumerate(counts) for _ in range(count)]
        rows = [i for i, right in enumerate(accepted) if right]
        if not rows:
            return
        kept = [groups[i] for i in rows]
        for begin in range(0, len(rows), workload["micro_batch"]):
            part = rows[begin : begin + workload["micro_batch"]]
            batch = self.policy.batch([(workload["prompts"][groups[i]], samples[i]) for i in part])
            logprobs = self.policy.logprobs(*batch)
            gains = clipped_gain(logprobs, logprobs.detach())  # one update a step: the old policy is this one
            gains = gains.split([len(samples[i]) for i in part])
            loss = -sum(gain.sum() / kept.count(groups[i]) for gain, i in zip(gains, part, strict=True))
            (loss / (len(counts) * workload["max_new_tokens"])).backward()
        self.policy.update(self.optimizer)
        with torch.no_grad():
            for copy, master in zip(self.sampler.model.parameters(), self.policy.model.parameters(), strict=True):
                copy.copy_(master)
