"""Qwen2.5-Math-1.5B on NuminaMath with the paper's batch: 1,024 prompts x 8, 1,024 + 3,072 tokens.

    tpu_scripts/train.sh --config=configs/qwen25_math_1p5b.py --workdir=gs://BUCKET/math_1p5b

Arguments: `gvm_raft` (default), `raft`, `gvm_grpo`, `grpo`; they differ in the algorithm and the allocation only. The
paper's data set is NuminaMath-CoT, whose answers stand inside of its solutions; this one has a column of them.

    python -m gvm_jax.plan --config=configs/qwen25_math_1p5b.py --topology=v5e:4x4 --data_rows=900000

says of a chip (GiB; seconds are rooflines for 256 prompt and 1,024 response tokens a sample, least times all):

| | state | rollout weights + KV pages | most while sampling | in the train step | of the chip |
|---|---|---|---|---|---|
| v5e:4x4 | 1.08 | 2.80 | 4.07 | 5.18 | 15.75 |
| v6e:2x4, micro_batch 8 | 2.16 | 2.98 | 5.48 | 8.76 | 31.25 |
| 1 H100 80 GB or H200, micro_batch 8 (estimate) | 17.2 | 5.50 | 22.9 | 42 | 75 or 133 |
| 8 of them (estimate) | 2.16 | 2.98 | 5.3 | 8.8 | 75 or 133 |

| | train step, s | decode block of 64 x 8 tokens, ms | whole step, s | sampled tokens/s a chip | operations / model's |
|---|---|---|---|---|---|
| v5e:4x4 | 151 | 18.4 | 459 | 1,143 | 1.39 |
| v6e:2x4, micro_batch 8 | 136 | 9.0 | 286 | 3,671 | 1.39 |

Every chip decodes the same 64 sequences while rollouts are not split over mesh.fsdp, so most of the step is decoding.
On one GPU and on v6e:2x4 add --config.optimizer.micro_batch=8 (with 16 the train step takes 186 s on v6e:2x4, and 1.42
times the operations). The mesh fills itself (mesh.fsdp = -1).
"""

from configs import default


def get_config(arg: str = "gvm_raft"):
    """`arg`: raft | gvm_raft | grpo | gvm_grpo."""
    config = default.get_config()
    default.set_method(config, arg)
    config.steps = 100
    config.model.path = "Qwen/Qwen2.5-Math-1.5B"
    config.data.path = "AI-MO/NuminaMath-1.5"
    config.evaluation.path = "HuggingFaceH4/MATH-500"
    config.evaluation.prompts = 500
    config.rollout.page_size = 64
    config.rollout.pages = 1536
    config.rollout.slots = 64
    config.rollout.prefill_tokens = 2048
    config.gradient_norms.method = "update"
    config.optimizer.micro_batch = 16
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return config
