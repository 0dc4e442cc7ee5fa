"""Qwen2.5-Math-7B on NuminaMath with the paper's batch: 1,024 prompts x 8, 1,024 + 3,072 tokens.

    tpu_scripts/train.sh --config=configs/qwen25_math_7b.py --workdir=gs://BUCKET/math_7b

Arguments: `gvm_raft` (default), `raft`, `gvm_grpo`, `grpo`; they differ in the algorithm and the allocation only.
"""

from configs import qwen25_math_1p5b


def get_config(arg: str = "gvm_raft"):
    """`arg`: raft | gvm_raft | grpo | gvm_grpo."""
    config = qwen25_math_1p5b.get_config(arg)
    config.model.path = "Qwen/Qwen2.5-Math-7B"
    config.evaluation.temperature = 0.7
    config.optimizer.micro_batch = 64
    return config
