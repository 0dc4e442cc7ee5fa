"""Qwen2.5-Math-7B on NuminaMath with the paper's batch: 1,024 prompts x 8, 1,024 + 3,072 tokens.

    tpu_scripts/train.sh --config=configs/qwen25_math_7b.py --workdir=gs://BUCKET/math_7b

Arguments: `gvm_raft` (default), `raft`, `gvm_grpo`, `grpo`; they differ in the algorithm and the allocation only.

    python -m gvm_jax.plan --config=configs/qwen25_math_7b.py --topology=v5p:4x4x4 --data_rows=900000
    python -m gvm_jax.plan --config=configs/qwen25_math_7b.py --topology=v5e:8x8 --config.rollout.tensor=4

says of a chip (GiB; seconds are rooflines for 256 prompt and 1,024 response tokens a sample, least times all):

| | state | rollout weights + KV pages | most while sampling | in the train step | of the chip |
|---|---|---|---|---|---|
| v5p:4x4x4 | 1.33 | 28.2 | 30.6 | 10.95 | 95.74 |
| v5e:8x8, rollout.tensor 4 | 1.33 | 7.05 | 8.7 | 10.75 | 15.75 |
| 8 H100 80 GB or H200, micro_batch 16 (estimate) | 10.6 | 28.2 | 39.3 | 31 | 75 or 133 |

| | train step, s | decode block of 8 steps, ms | whole step, s | sampled tokens/s a chip | operations / model's |
|---|---|---|---|---|---|
| v5p:4x4x4 | 21 | 62 (128 samples a chip) | 29 | 4,516 | 1.27 |
| v5e:8x8, rollout.tensor 4 | 49 | 63 (256 samples on 4 chips) | 65 | 2,011 | 1.27 |

A replica holds 14.2 GiB of weights in bfloat16, more than a v5e has room for: there add --config.rollout.tensor=4, the
chips of one host. On v5p each chip is a replica with 128 of the step's samples, half of its slots.
One H200 does not hold it: parameters, moments and gradients are 142 GiB in float32 (8 GPUs: micro_batch=16).
"""

from gvm_jax.configs import qwen25_math_1p5b


def get_config(arg: str = "gvm_raft"):
    """`arg`: raft | gvm_raft | grpo | gvm_grpo."""
    config = qwen25_math_1p5b.get_config(arg)
    config.model.path = "Qwen/Qwen2.5-Math-7B"
    config.evaluation.temperature = 0.7
    config.optimizer.micro_batch = 64
    config.optimizer.logprob_chunk = 256
    return config
