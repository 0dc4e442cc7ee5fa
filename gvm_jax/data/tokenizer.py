"""Loads a model's tokenizer and finds the tokens that end a response."""

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


def stop_token_ids(
    tokenizer: "PreTrainedTokenizerBase", model_path: str, names: tuple[str, ...] = ()
) -> tuple[int, ...]:
    """The ids of the tokens that end a response, ascending.

    Args:
      tokenizer: the model's tokenizer.
      model_path: folder or hub name of the model.
      names: texts of the stop tokens; () = every `eos_token_id` of generation_config.json and config.json,
        and the tokenizer's own.

    Raises:
      DataError: a name is not a token, or there is no stop token.
    """
    if names:
        vocabulary = tokenizer.get_vocab()
        for name in names:
            if name not in vocabulary:
                raise DataError(
                    f"rollout.stop_tokens: {name!r} is not one token of the vocabulary of {model_path!r}. "
                    f"Name tokens such as {tokenizer.eos_token!r}, or none to take what the model names."
                )
        return tuple(sorted({vocabulary[name] for name in names}))

    named = [tokenizer.eos_token_id]
    for filename in ("generation_config.json", "config.json"):
        eos_token_id = _read_model_json(model_path, filename).get("eos_token_id")
        named += eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
    ids = sorted({token_id for token_id in named if token_id is not None})
    if not ids:
        raise DataError(
            f"model.path = {model_path!r}: neither generation_config.json, config.json nor the tokenizer "
            "names an end-of-sequence token. Set rollout.stop_tokens."
        )
    return tuple(ids)


def _read_model_json(model_path: str, filename: str) -> dict:
    """A JSON file of a model, {} if it has none; a hub model's is cached as its tokenizer is."""
    from transformers.utils import cached_file

    local = pathlib.Path(model_path).expanduser()
    if local.is_dir():
        file = local / filename
        found = file if file.is_file() else None
    else:
        found = cached_file(model_path, filename, _raise_exceptions_for_missing_entries=False)
    return json.loads(pathlib.Path(found).read_text(encoding="utf-8")) if found else {}
