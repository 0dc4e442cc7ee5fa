"""Loads a model's tokenizer and reads the JSON files beside it."""

import json
import os
import pathlib
from typing import TYPE_CHECKING

from gvm_jax.data.errors import DataError
from gvm_jax.data.sources import looks_local

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(path: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a Hugging Face folder or hub name.

    Raises:
      DataError: no such folder, no tokenizer.json in it, or the hub could not give it.
    """
    local = pathlib.Path(path).expanduser()
    if local.is_dir():
        if not (local / "tokenizer.json").is_file():
            found = ", ".join(sorted(file.name for file in local.iterdir())) or "nothing"
            raise DataError(
                f"model.path = {path!r}: no tokenizer.json in this folder (found: {found}). Copy the "
                "tokenizer's files from the model's hub page into it."
            )
    elif local.exists() or looks_local(path) or not path:
        raise DataError(f"model.path = {path!r}: there is no such folder. Name a Hugging Face folder or a hub name.")

    # transformers warns on import that PyTorch is missing; it is not needed here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(local if local.is_dir() else path)
    except Exception as error:  # OSError, ValueError, KeyError, and the tokenizers library's own
        raise DataError(
            f"model.path = {path!r}: the tokenizer cannot be loaded: {error}. Check the name and the "
            "network; a local Hugging Face folder needs none."
        ) from error


def read_model_json(model_path: str, filename: str) -> dict:
    """A JSON file of a model, {} if it has none. Raises DataError if it holds no JSON object."""
    from transformers.utils import cached_file

    local = pathlib.Path(model_path).expanduser()
    if local.is_dir():
        file = local / filename
        found = file if file.is_file() else None
    else:
        found = cached_file(model_path, filename, _raise_exceptions_for_missing_entries=False)
    try:
        content = json.loads(pathlib.Path(found).read_text(encoding="utf-8")) if found else {}
    except ValueError as error:
        raise DataError(
            f"model.path = {model_path!r}: {filename} is no JSON ({error}). Copy the file again."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"model.path = {model_path!r}: {filename} holds no JSON object. Copy the file again.")
    return content
