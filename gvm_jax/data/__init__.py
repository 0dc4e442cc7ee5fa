"""Prompt sources, chat templates and the resumable stream of prompts."""

from gvm_jax.data.arithmetic import arithmetic_rows, demonstrations, write_tokenizer
from gvm_jax.data.endings import Endings, find_endings
from gvm_jax.data.errors import DataError
from gvm_jax.data.loading import load_config_rows, load_prompts
from gvm_jax.data.prompts import PromptSet, build_prompts
from gvm_jax.data.sources import Row, load_rows
from gvm_jax.data.stream import PromptStream
from gvm_jax.data.tokenizer import load_tokenizer
from gvm_jax.data.vocabulary import check_ids, check_prompts, textless_ids

__all__ = [
    "DataError",
    "Endings",
    "PromptSet",
    "PromptStream",
    "Row",
    "arithmetic_rows",
    "build_prompts",
    "check_ids",
    "check_prompts",
    "demonstrations",
    "find_endings",
    "load_config_rows",
    "load_prompts",
    "load_rows",
    "load_tokenizer",
    "textless_ids",
    "write_tokenizer",
]
