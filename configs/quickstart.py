"""A tiny Qwen2.5-shaped reasoner learns sums step by step. Runs anywhere, in minutes.

tpu_scripts/train.sh                                              # GVM-RAFT++, the default
tpu_scripts/train.sh --config=configs/quickstart.py:raft          # the same with equal counts
tpu_scripts/train.sh --config=configs/quickstart.py:gvm_grpo      # or :grpo
"""

import pathlib

from gvm_jax.config import get_config as default_config
from gvm_jax.config import set_method

MODEL = pathlib.Path(__file__).resolve().parent / "quickstart_model"


def get_config(arg: str = "gvm_raft"):
    """`arg`: raft | gvm_raft | grpo | gvm_grpo."""
    config = default_config()
    set_method(config, arg)
    config.steps = 30
    config.prompts_per_step = 64
    config.rollouts_per_step = 512
    config.model.path = str(MODEL)
    config.model.compute_dtype = "float32"
    config.data.path = "builtin:arithmetic"
    config.data.system_prompt = ""
    config.data.user_template = "{problem}"
    config.data.max_prompt_tokens = 24
    config.evaluation.path = "builtin:arithmetic"
    config.evaluation.prompts = 256
    config.evaluation.every = 2
    config.rollout.max_new_tokens = 50
    config.rollout.slots = 128
    config.rollout.page_size = 16
    config.rollout.block_steps = 8
    config.rollout.prefill_tokens = 2048
    config.rewards.workers = 1
    config.gradient_norms.chunk = 16
    config.optimizer.learning_rate = 2e-4
    config.optimizer.updates_per_step = 2
    config.optimizer.micro_batch = 8
    config.checkpoint.every = 20
    return config
