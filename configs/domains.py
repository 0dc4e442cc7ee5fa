"""Rewards other than mathematics, each on a few prompts: short answers, programs, and a function of one's own.

    tpu_scripts/train.sh --config=configs/domains.py:python_tests --workdir=runs/programs

Arguments: `python_tests` (programs that their row's tests check), `exact` (short answers and multiple choice),
`function` (sentences, graded by configs/domains_data/sentences.py). Each has 24 rows to train on and 8 held out in
configs/domains_data/. They show how a data set, the prompts and a reward go together; they are too few to learn much
from.

Memory: about 12 GB, as for configs/qwen25_0p5b_gsm8k.py. The model starts with accept rates of 0.75 (held-out
programs), 0.06 (short answers; it forgets the form that is asked for) and 0.13 (sentences). Half of the samples,
`--config.rollouts_per_step=32`, are a step of half a minute to two minutes on 2 CPU cores.
"""

import pathlib

from gvm_jax.config import ConfigError
from gvm_jax.config import get_config as default_config

DATA = pathlib.Path(__file__).resolve().parent / "domains_data"


def get_config(arg: str = ""):
    """`arg`: python_tests | exact | function."""
    if arg not in DOMAINS:
        raise ConfigError(f"argument {arg!r} of the config file: must be one of {', '.join(DOMAINS)}")
    config = default_config()
    config.steps = 10
    config.prompts_per_step = 8
    config.rollouts_per_step = 64
    config.model.path = "Qwen/Qwen2.5-Coder-0.5B-Instruct"
    config.data.max_prompt_tokens = 256
    config.data.path, config.evaluation.path = (str(DATA / f"{arg}_{split}.jsonl") for split in ("train", "test"))
    config.evaluation.every = 5
    config.rollout.max_new_tokens = 192
    config.rollout.slots = 32
    config.rollout.page_size = 32
    config.optimizer.updates_per_step = 1
    config.optimizer.micro_batch = 4
    config.journal.samples = 64
    DOMAINS[arg](config)
    return config


def _python_tests(config) -> None:
    config.rewards.function = "python_tests"
    config.data.answer_column = "tests"
    config.data.answer_from = "list"  # of tests, which must all pass
    config.data.system_prompt = "Answer with one Python code block: the function, without comments and examples."
    config.data.user_template = "{problem}"


def _exact(config) -> None:
    config.rewards.function = "exact"
    config.data.system_prompt = (
        'Reply in one line: "The answer is C." to a question with choices, "The answer is London." to one without.'
    )
    config.data.user_template = "{problem}"
    config.rollout.max_new_tokens = 64


def _function(config) -> None:
    config.rewards.function = "gvm_jax.configs.domains_data.sentences:score"
    config.data.system_prompt = ""
    config.data.user_template = "{problem}"
    config.rollout.max_new_tokens = 48


DOMAINS = {"python_tests": _python_tests, "exact": _exact, "function": _function}
