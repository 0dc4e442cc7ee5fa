"""Qwen2.5-Math-7B on NuminaMath with the paper's batch: 1,024 prompts x 8, 1,024 + 3,072 tokens.

    tpu_scripts/train.sh --config=configs/qwen25_math_7b.py --workdir=gs://BUCKET/math_7b

Arguments: `gvm_raft` (default), `raft`, `gvm_grpo`, `grpo`; they differ in the algorithm and the allocation only.

    python -m gvm_jax.plan --config=configs/qwen25_math_7b.py --topology=v5p:4x4x4 --data_rows=900000

says of a chip (GiB; seconds are rooflines for 256 prompt and 1,024 response tokens a sample, least times all):

| | state | rollout weights + KV pages | most while sampling | in the train step | of the chip |
|---|---|---|---|---|---|
| v5p:4x4x4 | 1.33 | 5.47 | 7.16 | 10.66 | 95.74 |
| v5e:8x8 | 1.33 | 5.47 | 7.14 | 9.53 | 15.75 |
| 8 H100 80 GB or H200, micro_batch 16 (estimate) | 10.6 | 7.02 | 17.8 | 31 | 75 or 133 |

| | train step, s | decode block of 64 x 8 tokens, ms | whole step, s | sampled tokens/s a chip | operations / model's |
|---|---|---|---|---|---|
| v5p:4x4x4 | 64 | 16.7 | 345 | 380 | 1.28 |
| v5e:8x8 | 150 | 33.5 | 712 | 184 | 1.28 |

Every chip decodes the same 64 sequences while rollouts are not split over mesh.fsdp, so most of the step is decoding.
One H200 does not hold it: parameters, moments and gradients are 142 GiB in float32 (8 GPUs: micro_batch=16).
"""

from configs import qwen25_math_1p5b


def get_config(arg: str = "gvm_raft"):
    """`arg`: raft | gvm_raft | grpo | gvm_grpo."""
    config = qwen25_math_1p5b.get_config(arg)
    config.model.path = "Qwen/Qwen2.5-Math-7B"
    config.evaluation.temperature = 0.7
    config.optimizer.micro_batch = 64
    return config
