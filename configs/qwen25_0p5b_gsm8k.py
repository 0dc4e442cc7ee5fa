"""Qwen2.5-0.5B on GSM8K: a real model on real data, on one accelerator.

    tpu_scripts/train.sh --config=configs/qwen25_0p5b_gsm8k.py --workdir=runs/gsm8k

Arguments: `gvm_raft` (default), `raft`, `gvm_grpo`, `grpo`; they differ in the algorithm and the allocation only. Any
Qwen2.5 of 0.5B will do: `--config.model.path=` takes a hub name (Instruct, base, Coder) or a local folder. GSM8K from
local .jsonl files wants `--config.data.path=FILE --config.evaluation.path=FILE --config.data.problem_column=question
"--config.data.answer_after=####"`. Memory: about 12 GB (float32 parameters, AdamW and
gradients 8 GB, KV cache 2 GB in bfloat16, activations).

A few prompts a step show the whole loop on a CPU, in minutes a step:

    tpu_scripts/train.sh --config=configs/qwen25_0p5b_gsm8k.py --workdir=runs/gsm8k_cpu --config.steps=3 \\
        --config.prompts_per_step=4 --config.rollouts_per_step=32 --config.rollout.slots=32 \\
        --config.optimizer.updates_per_step=1 --config.optimizer.micro_batch=4 --config.evaluation.path=
"""

from gvm_jax.config import get_config as default_config
from gvm_jax.config import set_method


def get_config(arg: str = "gvm_raft"):
    """`arg`: raft | gvm_raft | grpo | gvm_grpo."""
    config = default_config()
    set_method(config, arg)
    config.steps = 100
    config.prompts_per_step = 64
    config.rollouts_per_step = 512
    config.model.path = "Qwen/Qwen2.5-0.5B-Instruct"
    config.data.path = "gsm8k"
    config.data.max_prompt_tokens = 256
    config.evaluation.path = "gsm8k"
    config.rollout.max_new_tokens = 400  # 300 cut half of the answers
    config.rollout.page_size = 32
    config.gradient_norms.max_samples = 128
    config.optimizer.updates_per_step = 2
    return config
