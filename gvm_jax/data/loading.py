"""The rows and prompts of a config's data sets: which fields apply to which, and what is kept out."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from ml_collections import ConfigDict

from gvm_jax.data.decontamination import contaminated
from gvm_jax.data.errors import DataError
from gvm_jax.data.named import NAMED
from gvm_jax.data.prompts import UNREADABLE, PromptSet, build_prompts, repeats
from gvm_jax.data.sources import Row, load_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gvm_jax.rewards import Grader

EXCLUDED = "problem of data.exclude"
COLUMNS = ("problem_column", "answer_column", "answer_from", "answer_after")
SPLITS = {"data": "train", "evaluation": "test"}  # where the config names none


def load_config_rows(config: ConfigDict, section: str, path: str) -> list[Row]:
    """Rows of a data set; those of the section `data` that are in one of `data.exclude` are marked as dropped.

    A name of `NAMED` brings its own subset, split and columns. Every other data set has the subset and split of its
    section and the columns of the section `data`.

    Args:
      config: validated.
      section: "data" or "evaluation".
      path: a data set, named as `data.path` is.

    Raises:
      DataError: a data set cannot be read, or the section names a known data set and sets what that brings.
    """
    rows = load_rows(**_arguments(config, section, path), section=section)
    if section == "evaluation":
        return rows[: config.evaluation.prompts]
    found = np.zeros(len(rows), bool)
    for excluded in config.data.exclude:
        try:
            benchmark = load_rows(**_arguments(config, "evaluation", excluded), section="evaluation")
        except DataError as error:
            raise DataError(f"data.exclude has {excluded!r}, read as evaluation.path would be: {error}") from error
        found |= contaminated([row.problem for row in rows], [row.problem for row in benchmark])
    return [
        row._replace(dropped=row.dropped or EXCLUDED) if is_found else row
        for row, is_found in zip(rows, found, strict=True)
    ]


def load_prompts(
    config: ConfigDict, section: str, path: str, tokenizer: "PreTrainedTokenizerBase", grader: "Grader"
) -> PromptSet:
    """The rows of `load_config_rows` as prompts, with the templates of the section `data`.

    Rows whose reference the grader cannot use are dropped.
    """
    data = config.data
    rows = load_config_rows(config, section, path)
    prompts = build_prompts(rows, tokenizer, data.system_prompt, data.user_template, data.max_prompt_tokens)
    prompts = prompts.drop(~grader.parses(prompts.reference_answers), UNREADABLE)
    repeated = repeats(prompts.ids.tolist(), prompts.problems, prompts.reference_answers, grader.equivalent)
    return dataclasses.replace(prompts, notes=(*prompts.notes, *repeated))


def _arguments(config: ConfigDict, section: str, path: str) -> dict[str, str]:
    """Arguments of `load_rows` for a data set."""
    bad_rows = config.data.bad_rows
    subset, split = config[section].subset, config[section].split
    columns = {name: config.data[name] for name in COLUMNS if config.data[name]}
    if path not in NAMED:
        return {"path": path, "subset": subset, "split": split or SPLITS[section], "bad_rows": bad_rows, **columns}
    known = NAMED[path]
    if path == config[section].path:
        fields = {"subset": subset, "split": split, **(columns if section == "data" else {})}
        if given := [f"{section}.{name} = {value!r}" for name, value in fields.items() if value]:
            raise DataError(
                f"{', '.join(given)}: {section}.path = {path!r} is a name that brings these itself; set them to '', "
                f"or give the data set's path, {known.path!r}, in place of the name."
            )
    return {
        "path": known.path,
        "subset": known.subset,
        "split": known.train if section == "data" else known.test,
        "bad_rows": bad_rows,
        **{name: getattr(known, name) for name in COLUMNS},
    }
