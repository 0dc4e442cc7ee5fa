"""What a run is made from, known by content: a run may be resumed with its files elsewhere, but not with others."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from gvm_jax.config import ConfigError
from gvm_jax.models.config import Qwen2Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Fingerprints = dict[str, Any]  # by the config's section, as JSON holds it


def of_model(network: Qwen2Config, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """The parts of a model folder beside the weights that a run depends on, the large ones as hashes."""

    def digest(part: Any) -> str:
        return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()

    fields = (field.name for field in dataclasses.fields(network) if field.name != "masked_ids")  # the vocabulary's
    parts = {f"config.json's {name}": getattr(network, name) for name in fields}
    return parts | {"vocabulary": digest(tokenizer.get_vocab()), "chat template": digest(tokenizer.chat_template)}


def check(found: Fingerprints, saved: Mapping[str, Any], config: ConfigDict, workdir: str | os.PathLike[str]) -> None:
    """Raises ConfigError where a checkpoint was trained from, or evaluated on, something else than is found now.

    Args:
      found: now.
      saved: what the checkpoint says beside its state; a section that it does not name is not compared.
      config: whose sections say where it was found, for the message.
      workdir: of the run, likewise.
    """
    for section, now in sorted(found.items(), key=lambda item: item[0] != "model"):  # whose template words the others
        before, path = saved.get(section, now), config[section].path
        if section == "model":
            if parts := [name for name in now if name in before and before[name] != now[name]]:
                raise ConfigError(
                    f"model.path = {path!r}: not the model that {workdir} began with: other {', '.join(parts)}. "
                    "Name that one, or use another --workdir"
                )
        elif before != now:
            raise ConfigError(
                f"{section}.path = {path!r}: not the data that {workdir} has had so far, so its statistics and "
                "scores would be of other prompts; restore the file or use another --workdir"
            )
