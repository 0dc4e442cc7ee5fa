"""What a step computes, written out in PyTorch and plain Python: the truth that this project is held against."""

import pathlib

import torch
from hf_model import ADAMW, PaddedPolicy, clipped_gain, given_pairs
from paper_allocation import allocate
from safetensors.torch import save_file
from torch_device import TorchEngine

LEARNING_RATE = 0.1  # so large that rounding of the float32 parameters hides no digit of the update


class Agreement(TorchEngine):
    """A sample at a time, no padding; everything in the workload's dtype."""

    def __init__(self, workload: dict):
        super().__init__(workload)
        self.policy = PaddedPolicy(workload, workload["dtype"])
        self.batches = [self.policy.batch([pair]) for pair in given_pairs(workload)]
        self.configured = f"{self.policy.configured}, a sample at a time, AdamW"

    def warm_up(self) -> None:
        pass  # nothing is timed

    def run(self, counts: list[int], seed: int) -> dict:
        workload, rewards = self.workload, self.workload["rewards"]
        with torch.no_grad():
            logprobs = [self.policy.logprobs(*batch) for batch in self.batches]
        old = [
            known + torch.tensor(shift, device=known.device)
            for known, shift in zip(logprobs, workload["shifts"], strict=True)
        ]
        norms = [self._norm(batch) if r > 0 else 0.0 for batch, r in zip(self.batches, rewards, strict=True)]
        losses, gradient_norms = {}, {}
        for name in ("raft", "grpo", "raft_pp"):  # the last leaves its gradient
            losses[name], gradient_norms[name] = self._loss(name, old)
        return {
            "logprobs": [row.tolist() for row in logprobs],
            "norms": norms,
            "allocation": allocate(norms, [r > 0 for r in rewards], workload["groups"], len(norms)),
            "losses": losses,
            "gradient_norms": gradient_norms,
            "tensors": self._update(pathlib.Path(workload["folder"], "hf")),
        }

    def _norm(self, batch) -> float:
        weight = self.policy.model.get_input_embeddings().weight
        (gradient,) = torch.autograd.grad(-self.policy.logprobs(*batch).sum(), [weight])
        return torch.linalg.vector_norm(gradient, dtype=torch.float64).item()

    def _loss(self, name: str, old: list) -> tuple[float, float]:
        """-mean over prompts of the mean over their samples, and its gradient's norm."""
        workload = self.workload
        rewards, groups = torch.tensor(workload["rewards"], dtype=torch.float64), torch.tensor(workload["groups"])
        prompts, longest, total = int(groups.max()) + 1, max(map(len, workload["responses"])), 0.0
        self.policy.model.zero_grad()
        for i, batch in enumerate(self.batches):
            group = rewards[groups == groups[i]]
            if name == "grpo":
                advantage = ((rewards[i] - group.mean()) / (group.std() + 1e-6)).item()
                weight = 1 / (prompts * len(group) * len(workload["responses"][i]))
            else:
                advantage, weight = rewards[i].item(), 1 / (prompts * (group > 0).sum().item() * longest)
            if advantage == 0:
                continue
            logprobs = self.policy.logprobs(*batch)
            gain = advantage * logprobs if name == "raft" else clipped_gain(logprobs, old[i], advantage)
            loss = -weight * gain.sum()
            loss.backward()
            total += loss.item()
        return total, self._gradient_norm()

    def _gradient_norm(self) -> float:
        """In float64: PyTorch's float32 norm of an embedding's 136 million numbers is off in the second digit."""
        norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float64) for p in self.policy.model.parameters()]
        return torch.stack(norms).norm().item()

    def _update(self, folder: pathlib.Path) -> dict[str, str]:
        """Files with the clipped gradient and with what AdamW makes of it, by the checkpoint's names."""
        model = self.policy.model
        scale = min(1.0, 1 / self._gradient_norm())
        for p in model.parameters():
            p.grad.mul_(scale)
        folder.mkdir()
        files = {name: str(folder / f"{name}.safetensors") for name in ("gradient", "update")}
        save_file({name: p.grad for name, p in model.named_parameters()}, files["gradient"])
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, **ADAMW).step()
        save_file({name: p.detach() - before[name] for name, p in model.named_parameters()}, files["update"])
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(before[name])
        model.zero_grad()
        return files
