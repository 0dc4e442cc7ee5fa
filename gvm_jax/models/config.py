"""The shape of a Qwen2.5 model, read from its `config.json`."""

import dataclasses
import json
import pathlib


class ModelError(ValueError):
    """A model folder that cannot be used; the message names the file, what is wrong and what to do."""


@dataclasses.dataclass(frozen=True)
class Qwen2Config:
    """The fields of `config.json` that shape the network, under Hugging Face's names."""

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

    @classmethod
    def from_folder(cls, folder: pathlib.Path) -> "Qwen2Config":
        """Read `folder/config.json`; ModelError for anything that is not a plain Qwen2 network."""
        path = folder / "config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ModelError(f"{path} is not valid JSON ({error}); copy the model folder again") from error
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
        heads = raw["num_attention_heads"]
        values = {
            **raw,
            "head_dim": raw.get("head_dim") or raw["hidden_size"] // heads,
            "num_key_value_heads": raw.get("num_key_value_heads") or heads,
            "rope_theta": rope.get("rope_theta", raw.get("rope_theta", 10_000.0)),
            "rms_norm_eps": raw.get("rms_norm_eps", 1e-6),
            "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        }
        missing = [field.name for field in dataclasses.fields(cls) if field.name not in values]
        if missing:
            raise ModelError(f"{path} has no {', '.join(missing)}; is it a Qwen2 model's config?")
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls)})


def model_folder(path: str) -> pathlib.Path:
    """The local folder of `model.path`: the folder itself, or a hub name's snapshot (downloaded once).

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

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"])
        )
    except Exception as error:  # the hub client raises dozens of types; each means the same to the user
        raise ModelError(
            f"model.path={path!r} is no local folder, and the hub did not give it ({type(error).__name__}: {error}); "
            "check the name and the network, or give a local folder"
        ) from error
