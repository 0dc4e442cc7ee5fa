"""All errors in the inputs of a run at once: its fields, strategy, model, data sets and micro-batch."""

import contextlib
import functools
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from gvm_jax.allocation import make_strategy
from gvm_jax.config import ConfigError, problems
from gvm_jax.data import DataError, find_endings, load_config_rows, load_prompts, load_tokenizer
from gvm_jax.data.prompts import UNREADABLE_ADVICE
from gvm_jax.errors import InputError
from gvm_jax.models.config import Qwen2Config, model_folder
from gvm_jax.rewards import Grader, VerifierFailure
from gvm_jax.training.batch_sizes import check_micro_batch


@contextlib.contextmanager
def every_input_error(config: ConfigDict) -> Iterator[None]:
    """Where the body raises an `InputError`, adds those of the config's other inputs, so that all are mended at once.

    Only then are the inputs read a second time. No device is touched.

    Raises:
      ConfigError: with an error a line; the body's own error where there is no other one.
    """
    try:
        yield
    except InputError as error:
        fields = list(problems(config).values())
        own = [] if fields else [str(error)]
        others = [problem for problem in input_errors(config) if problem not in str(error)]
        if others:
            raise ConfigError("\n  ".join(["the run cannot start:", *fields, *own, *others])) from error
        raise


def input_errors(config: ConfigDict) -> list[str]:
    """The errors in what a config names; checks that read a section with a wrong field are left out."""
    broken = {field.partition(".")[0] for field in problems(config)}
    found = []
    with contextlib.ExitStack() as stack:
        grader = functools.cache(lambda: stack.enter_context(Grader(**config.rewards)))
        checks: list[tuple[set[str], Callable[[], object]]] = [
            ({"allocation"}, lambda: make_strategy(config.allocation)),
            ({"model", "rollout"}, lambda: _check_model(config)),
            ({"data", "rewards"}, lambda: _check_data(config, "data", grader)),
            ({"data", "rewards", "evaluation"}, lambda: _check_data(config, "evaluation", grader)),
            ({"optimizer", "mesh", "rollouts_per_step", "allocation"}, lambda: _check_micro_batch(config)),
        ]
        for sections, check in checks:
            try:
                if broken.isdisjoint(sections):
                    check()
            except (InputError, VerifierFailure) as error:
                found.append(str(error))
    return list(dict.fromkeys(found))


def _check_model(config: ConfigDict) -> None:
    folder = model_folder(config.model.path)
    network = Qwen2Config.from_folder(folder)
    find_endings(load_tokenizer(str(folder)), str(folder), network.vocab_size, config.rollout.stop_tokens)


def _check_data(config: ConfigDict, section: str, grader: Callable[[], Grader]) -> None:
    """The rows and their reference answers; the prompts too where the model has a tokenizer."""
    if not (path := config[section].path):
        return
    try:
        tokenizer = load_tokenizer(str(model_folder(config.model.path, weights=False)))
    except InputError:
        tokenizer = None  # `_check_model` reports it
    if tokenizer:
        load_prompts(config, section, path, tokenizer, grader())
        return
    answers = [row.answer for row in load_config_rows(config, section, path) if row.answer]
    if not grader().parses(answers).any():
        raise DataError(f"{section}.path = {path!r}: no reference answer can be read; {UNREADABLE_ADVICE}")


def _check_micro_batch(config: ConfigDict) -> None:
    if config.mesh.data > 0 and config.mesh.fsdp > 0:  # else the devices decide
        check_micro_batch(config, config.mesh.data * config.mesh.fsdp)
