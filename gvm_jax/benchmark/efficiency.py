"""What share of an accelerator's peak an engine reached: operations and bytes that a workload cannot do without."""

import dataclasses
import math
from collections.abc import Sequence

from gvm_jax.benchmark.workload import Workload
from gvm_jax.models.config import Qwen2Config
from gvm_jax.planning.chips import Chip
from gvm_jax.planning.model_flops import body_flops, head_flops, layer_weights

# Forward passes that a task's operations are worth: a backward pass costs twice as much for activations and weights,
# once for activations alone.
PASSES = {"engine": 1, "logprobs": 1, "norms": 2, "update": 3}
SHARED = {"gvm_jax": 8}  # engine -> samples that read their prompt's keys and values together; else each its own


@dataclasses.dataclass(frozen=True)
class Yardstick:
    """A model on an accelerator.

    Args:
      network: the model's.
      chip: whose bfloat16 peak and bandwidth count.
      task: of `PASSES`.
      itemsize: bytes of a weight, and of a cached key or value.
    """

    network: Qwen2Config
    chip: Chip
    task: str
    itemsize: int

    def mfu(self, workload: Workload, counts: Sequence[int], run: dict) -> float:
        """Model FLOPs utilisation (arXiv 2204.02311, appendix B): the model's operations a second over the peak's.

        A prompt counts once however many samples it has, padding and what is computed again do not count, and a token
        attends to those before it alone.
        """
        return PASSES[self.task] * self._forward(workload, counts, run["lengths"]) / run["seconds"] / self.chip.flops

    def bandwidth(self, engine: str, workload: Workload, counts: Sequence[int], run: dict) -> float | None:
        """Bytes a second of weights, keys and values that decoding reads over the peak's; None where it is not known.

        A step reads every weight, and the keys and values of its samples: those of a prompt once for each sample, or
        for as many as the engine has read them together.
        """
        if self.task != "engine" or "steps" not in run or run["prefill_seconds"] is None:
            return None
        network = self.network
        weights = network.num_hidden_layers * layer_weights(network) + network.vocab_size * network.hidden_size
        token = 2 * network.num_hidden_layers * network.num_key_value_heads * network.head_dim
        lengths, read = iter(run["lengths"]), 0
        for prompt, count in zip(workload.prompts, counts, strict=True):
            mine = [next(lengths) for _ in range(count)]
            read += sum(n * (n + 1) // 2 for n in mine)
            read += len(prompt) * sum(mine) * math.ceil(count / SHARED.get(engine, 1)) / max(count, 1)
        moved = self.itemsize * (run["steps"] * weights + token * read)
        return moved / (run["seconds"] - run["prefill_seconds"]) / self.chip.hbm_bandwidth

    def _forward(self, workload: Workload, counts: Sequence[int], lengths: Sequence[int]) -> float:
        lengths, flops = iter(lengths), 0.0
        for prompt, count in zip(workload.prompts, counts, strict=True):
            before = len(prompt)
            flops += body_flops(self.network, before, (before + 1) / 2) * (count > 0)
            for _ in range(count):
                after = next(lengths)
                flops += body_flops(self.network, after, before + (after + 1) / 2) + head_flops(self.network, after)
        return flops
