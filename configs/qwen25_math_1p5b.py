"""Qwen2.5-Math-1.5B on NuminaMath with the paper's batch: 1,024 prompts x 8, 1,024 + 3,072 tokens.

    tpu_scripts/train.sh --config=configs/qwen25_math_1p5b.py --workdir=gs://BUCKET/math_1p5b

Arguments: `gvm_raft` (default), `raft`, `gvm_grpo`, `grpo`; they differ in the algorithm and the allocation only. The
data are the paper's: NuminaMath-CoT, with the answers that its solutions box, less the problems of MATH-500.

    python -m gvm_jax.plan --config=configs/qwen25_math_1p5b.py --topology=v5e:4x4 --data_rows=900000

says of a chip (GiB; seconds are rooflines for 256 prompt and 1,024 response tokens a sample, least times all):

| | state | rollout weights + KV pages | most while sampling | in the train step | of the chip |
|---|---|---|---|---|---|
| v5e:4x4 | 1.08 | 9.88 | 11.5 | 6.57 | 15.75 |
| v6e:2x4, micro_batch 8 | 2.16 | 9.88 | 12.6 | 8.93 | 31.25 |
| 1 H100 80 GB or H200, micro_batch 8 (estimate) | 17.2 | 9.88 | 27.6 | 42 | 75 or 133 |
| 8 of them, micro_batch 8 (estimate) | 2.16 | 9.88 | 12.5 | 7.5 | 75 or 133 |

| | train step, s | decode block of 8 steps, ms | whole step, s | sampled tokens/s a chip | operations / model's |
|---|---|---|---|---|---|
| v5e:4x4 | 50 | 93 | 74 | 7,079 | 1.41 |
| v6e:2x4, micro_batch 8 | 35 | 48 | 60 | 17,567 | 1.41 |

Every chip is a replica (rollout.tensor = 1) that decodes 256 samples of its own. 4,096 pages of 64 tokens are 16 a
slot; where they run out, samples are put back and computed again (`rollout/preemptions`). The train step is that of
packed rows, 3.2 samples in each. On one GPU and on v6e:2x4 add --config.optimizer.micro_batch=8. The mesh fills itself
(mesh.fsdp = -1).
"""

from gvm_jax.config import get_config as default_config
from gvm_jax.config import set_method


def get_config(arg: str = "gvm_raft"):
    """`arg`: raft | gvm_raft | grpo | gvm_grpo."""
    config = default_config()
    set_method(config, arg)
    config.steps = 100
    config.model.path = "Qwen/Qwen2.5-Math-1.5B"
    config.data.path = "numina"
    config.data.exclude = ("math500",)
    config.evaluation.path = "math500"
    config.evaluation.prompts = 500
    config.rollout.page_size = 64
    config.rollout.pages = 4096
    config.rollout.slots = 256
    config.rollout.prefill_tokens = 2048
    config.gradient_norms.method = "update"
    config.optimizer.micro_batch = 16
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return config
