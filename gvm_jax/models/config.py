"""The shape of a Qwen2.5 model, read from its `config.json`."""

import dataclasses
import functools
import json
import math
import operator
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gvm_jax.errors import InputError

if TYPE_CHECKING:
    import transformers

ADAPTER = "adapter_config.json"
_NO_ADAPTERS = (
    f"holds an adapter ({ADAPTER}), which is not read; merge it into its base model (merge_and_unload of peft) and "
    "give the folder of the merged model"
)
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
)  # fmt: skip


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
    # Ids whose logits are -inf, since the tokenizer has no text for them. config.json does not name them.
    masked_ids: tuple[range, ...] = ()

    @classmethod
    def from_folder(cls, folder: pathlib.Path) -> "Qwen2Config":
        """Read `folder/config.json` as transformers does: its defaults, and its choice between fields that disagree.

        Raises:
          ModelError: the file is no JSON object, or describes anything but a plain Qwen2 network in floats.
        """
        path = folder / "config.json"
        if (folder / ADAPTER).is_file():  # transformers would load another folder's weights, which it names
            raise ModelError(f"{folder} {_NO_ADAPTERS}")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read as JSON ({error}); copy the model folder again") from error
        if not isinstance(raw, dict):
            raise ModelError(f"{path} holds no JSON object; copy the model folder again")
        _expect(path, "model_type", "qwen2", raw.get("model_type"))
        # For these transformers would take the sizes of a 7B model.
        if missing := [name for name in _SIZES if name not in raw]:
            raise ModelError(f"{path} has no {', '.join(missing)}; copy the model folder again")
        for field, plain in {"quantization_config": None, "per_layer_config": None, "is_causal": True}.items():
            _expect(path, field, plain, raw.get(field, plain))

        read = _as_transformers(path, raw)
        rope = read.rope_parameters
        _expect(path, "hidden_act", "silu", {"swish": "silu"}.get(read.hidden_act, read.hidden_act))
        _expect(
            path, "layer_types (or use_sliding_window)", "full_attention", " and ".join(sorted({*read.layer_types}))
        )
        _expect(path, "rope_type", "default", rope.get("rope_type"))
        _expect(path, "partial_rotary_factor", 1, rope.get("partial_rotary_factor", 1))
        head_dim = getattr(read, "head_dim", None)
        if head_dim is None and read.num_attention_heads > 0:
            head_dim = read.hidden_size // read.num_attention_heads
        names = (*_SIZES, "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings")
        fields = {name: getattr(read, name) for name in names}
        config = cls(**fields, head_dim=head_dim, rope_theta=rope.get("rope_theta"))
        for field in dataclasses.fields(cls):
            value = getattr(config, field.name)
            if field.type in (int, float) and not (type(value) in (int, field.type) and 0 < value < math.inf):
                raise ModelError(f"{path}: {field.name} is {value!r}; it must be a {field.type.__name__} above 0")
        if config.head_dim % 2:
            raise ModelError(f"{path}: head_dim is {config.head_dim}; it must be even, since RoPE turns pairs")
        if config.num_attention_heads % config.num_key_value_heads:
            raise ModelError(
                f"{path}: num_key_value_heads is {config.num_key_value_heads}; it must divide num_attention_heads = "
                f"{config.num_attention_heads}"
            )
        return config


def in_ranges(ids, ranges: Sequence[range]):
    """Which of the ids (an array of any kind) are in one of the ranges."""
    return functools.reduce(operator.or_, ((ids >= r.start) & (ids < r.stop) for r in ranges), ids < 0)


def _expect(path: pathlib.Path, field: str, allowed: Any, found: Any) -> None:
    if found != allowed:
        raise ModelError(f"{path}: {field} is {found!r}, only {allowed!r} is supported; use a plain Qwen2.5 model")


def _as_transformers(path: pathlib.Path, raw: dict[str, Any]) -> "transformers.Qwen2Config":
    """What transformers reads from a config.json of model_type qwen2."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # PyTorch, which it misses, is not needed here
    import transformers

    # The weights' own type counts; and where PyTorch is there, transformers would import it for these.
    fields = {name: value for name, value in raw.items() if name not in ("dtype", "torch_dtype")}
    try:
        return transformers.Qwen2Config.from_dict(fields)
    except Exception as error:  # of types from everywhere: fields are whatever somebody wrote
        raise ModelError(f"{path} is no config that transformers reads: {' '.join(str(error).split())}") from error


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
    if (folder / ADAPTER).is_file():
        raise ModelError(f"model.path={path!r} {_NO_ADAPTERS}")
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
