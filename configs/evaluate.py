r"""Evaluation as in the paper (arXiv 2505.02391, section 4): 8 samples a question, at most 3,072 tokens, T = 1.

    python -m gvm_jax.evaluate --config=configs/evaluate.py --data=problems.jsonl \
        --config.model.path=Qwen/Qwen2.5-Math-1.5B-Instruct

The paper's 7B models were sampled with --config.evaluation.temperature=0.7. Sections that only training reads are those
of gvm_jax/config/fields.py.
"""

from gvm_jax.config import get_config as default_config


def get_config():
    """`model.path`, or a run's --checkpoint, and the data set are the command line's."""
    config = default_config()
    config.evaluation.samples = 8
    config.evaluation.prompts = 1_000_000_000  # all
    return config
