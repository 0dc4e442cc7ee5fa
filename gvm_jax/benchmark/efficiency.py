"""Shares of an accelerator's peaks that an engine reached: operations and bytes that a workload cannot do without."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from gvm_jax.benchmark.workloads import Workload
from gvm_jax.models.config import Qwen2Config
from gvm_jax.planner.model_flops import body_flops, head_flops, layer_weights
from gvm_jax.planner.topologies import Chip

# Forward passes that a task's operations are worth: a backward pass costs twice as much for activations and weights,
# once for activations alone.
PASSES = {"rollouts": 1, "logprobs": 1, "norms": 2, "update": 3}


@dataclasses.dataclass(frozen=True)
class Yardstick:
    """A model on an accelerator, whose bfloat16 peak and bandwidth count; of a `task` of `PASSES`."""

    network: Qwen2Config
    chip: Chip
    task: str
    itemsize: int  # bytes of a weight, and of a cached key or value

    def mfu(self, workload: Workload, counts: Sequence[int], run: dict) -> float:
        """Model FLOPs utilisation (arXiv 2204.02311, appendix B): the model's operations a second over the peak's.

        A prompt counts once however many samples it has, padding and what is computed again do not count, and a token
        attends to those before it alone.
        """
        flops = 0.0
        for prompt, lengths in _samples(workload, counts, run):
            flops += body_flops(self.network, prompt, (prompt + 1) / 2) * bool(lengths)
            for n in lengths:
                flops += body_flops(self.network, n, prompt + (n + 1) / 2) + head_flops(self.network, n)
        return PASSES[self.task] * flops / run["seconds"] / self.chip.flops

    def bandwidth(self, workload: Workload, counts: Sequence[int], run: dict) -> float | None:
        """Bytes a second of weights, keys and values that decoding reads over the peak's; None where it is not known.

        A step reads every weight, and the keys and values of its samples: those of a prompt once for each sample, or
        for each `samples_per_read` of them where the run says that its kernel reads them together.
        """
        if self.task != "rollouts" or "steps" not in run or run["prefill_seconds"] is None:
            return None
        network, read = self.network, 0.0
        weights = network.num_hidden_layers * layer_weights(network) + network.vocab_size * network.hidden_size
        token = 2 * network.num_hidden_layers * network.num_key_value_heads * network.head_dim
        for prompt, lengths in _samples(workload, counts, run):
            reads = math.ceil(len(lengths) / run.get("samples_per_read", 1))
            read += sum(n * (n + 1) // 2 for n in lengths) + prompt * sum(lengths) * reads / max(len(lengths), 1)
        moved = self.itemsize * (run["steps"] * weights + token * read)
        return moved / (run["seconds"] - run["prefill_seconds"]) / self.chip.hbm_bandwidth


def _samples(workload: Workload, counts: Sequence[int], run: dict) -> Iterator[tuple[int, list[int]]]:
    """(tokens of a prompt, tokens of each of its responses) for each prompt."""
    lengths = iter(run["lengths"])
    for prompt, count in zip(workload.prompts, counts, strict=True):
        yield len(prompt), [next(lengths) for _ in range(count)]
