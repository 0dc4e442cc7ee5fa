"""Qwen2.5-Math-1.5B on NuminaMath with the paper's batch: 1,024 prompts x 8, 1,024 + 3,072 tokens.

    tpu_scripts/train.sh --config=configs/qwen25_math_1p5b.py --workdir=gs://BUCKET/math_1p5b

Arguments: `gvm_raft` (default), `raft`, `gvm_grpo`, `grpo`; they differ in the algorithm and the allocation only.
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
