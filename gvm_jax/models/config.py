"""The shape of a Qwen2.5 model, read from its `config.json`."""

import dataclasses
import functools
import json
import operator
import pathlib
from collections.abc import Sequence

from gvm_jax.errors import InputError


class ModelError(InputError):
    """A model folder that cannot be used; the message names the file, what is wrong and what to do."""


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
    """The fields of `config.json` that shape the network, under Hugging Face's names, and which tokens it may write."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int = 32_768  # the longest sequence that it was made for; transformers' default
    # Ids whose logits are -inf: the tokenizer has no text for them. config.json knows none: who has the tokenizer says.
    masked_ids: tuple[range, ...] = ()

    @classmethod
    def from_folder(cls, folder: pathlib.Path) -> "Qwen2Config":
        """Read `folder/config.json`; ModelError for anything that is not a plain Qwen2 network."""
        path = folder / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read as JSON ({error}); copy the model folder again") from error
        if not isinstance(raw, dict):
            raise ModelError(f"{path} holds no JSON object; copy the model folder again")
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}  # transformers 5 / 4
        expected = {
            "model_type": ("qwen2", raw.get("model_type")),
            "hidden_act": ("silu", raw.get("hidden_act", "silu")),
            "use_sliding_window": (False, raw.get("use_sliding_window", False)),
            "rope_type": ("default", rope.get("rope_type", rope.get("type", "default"))),
        }
        for field, (allowed, found) in expected.items():
            if found != allowed:
                raise ModelError(f"{path}: {field} is {found!r}, only {allowed!r} is supported; use a Qwen2.5 model")
        defaults = {
            "num_key_value_heads": raw.get("num_attention_heads"),
            "rope_theta": rope.get("rope_theta", 10_000.0),
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "max_position_embeddings": cls.max_position_embeddings,
        }
        values = {**defaults, **{name: value for name, value in raw.items() if value is not None}}
        if "head_dim" not in values and isinstance(values.get("hidden_size"), int):
            heads = values.get("num_attention_heads")
            if not isinstance(heads, int) or heads < 1 or values["hidden_size"] % heads:
                raise ModelError(f"{path}: num_attention_heads is {heads!r}; it must divide hidden_size")
            values["head_dim"] = values["hidden_size"] // heads
        types = {"int": int, "float": (int, float), "bool": bool}
        fields = [field for field in dataclasses.fields(cls) if field.name != "masked_ids"]
        for field in fields:
            value, wanted = values.get(field.name), field.type.__name__
            right = isinstance(value, types[wanted]) and (wanted == "bool" or (value is not True and value > 0))
            if not right:
                raise ModelError(
                    f"{path}: {field.name} is {value!r}; it must be a {wanted}{' above 0' * (wanted != 'bool')}"
                )
        config = cls(**{field.name: values[field.name] for field in fields})
        if config.num_attention_heads % config.num_key_value_heads:
            raise ModelError(
                f"{path}: num_key_value_heads is {config.num_key_value_heads}; it must divide num_attention_heads = "
                f"{config.num_attention_heads}"
            )
        return config


def in_ranges(ids, ranges: Sequence[range]):
    """Which of the ids (an array of any kind) are in one of the ranges."""
    return functools.reduce(operator.or_, ((ids >= r.start) & (ids < r.stop) for r in ranges), ids < 0)


def model_folder(path: str, weights: bool = True) -> pathlib.Path:
    """The local folder of `model.path`: the folder itself, or a hub name's snapshot (downloaded once).

    Without `weights` only its config.json is downloaded.

    Raises:
      ModelError: neither is to be had.
    """
    if not path:
        raise ModelError("model.path is empty; give a Hugging Face folder or a hub name such as Qwen/Qwen2.5-0.5B")
    folder = pathlib.Path(path).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or path.startswith(("/", ".", "~")) or path.count("/") != 1:
        raise ModelError(
            f"model.path={path!r} is not a folder with a config.json; give a Hugging Face model folder "
            "or a hub name such as Qwen/Qwen2.5-0.5B"
        )
    import huggingface_hub  # slow to import, and only hub names need it

    patterns = ["*.json", "*.safetensors", "*.txt", "*.jinja"] if weights else ["config.json"]
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(path, allow_patterns=patterns))
    except Exception as error:  # the hub client raises dozens of types; each means the same to the user
        raise ModelError(
            f"model.path={path!r} is no local folder, and the hub did not give it ({type(error).__name__}: {error}); "
            "check the name and the network, or give a local folder: --config.model.path=FOLDER"
            + ("" if weights else ", of which only the config.json is read")
        ) from error
