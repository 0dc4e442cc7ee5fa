"""Hugging Face safetensors in and out of the parameters, exactly.

One table says which checkpoint tensor is which parameter; reading and writing both follow it. Every name and shape is
checked before anything is loaded: a missing, unmapped or duplicate tensor is an error, never skipped.
"""

import json
import math
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gvm_jax.models.config import ModelError, Qwen2Config
from gvm_jax.models.qwen2 import Model, Params
from gvm_jax.runtime.mesh import put

# Parameter path -> checkpoint name; "{}" is the layer. A linear weight is [out, in] there and [in, out] here.
TOP = {
    "embed_tokens.kernel": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "lm_head.kernel": "lm_head.weight",
}
LAYER = {
    "input_layernorm.scale": "model.layers.{}.input_layernorm.weight",
    "post_attention_layernorm.scale": "model.layers.{}.post_attention_layernorm.weight",
    **{f"{p}_proj.kernel": f"model.layers.{{}}.self_attn.{p}_proj.weight" for p in "qkvo"},
    **{f"{p}_proj.bias": f"model.layers.{{}}.self_attn.{p}_proj.bias" for p in "qkv"},
    **{f"{p}_proj.kernel": f"model.layers.{{}}.mlp.{p}_proj.weight" for p in ("gate", "up", "down")},
}
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
MAX_SHARD_BYTES = 5 * 10**9  # as Hugging Face shards


def load_params(model: Model, folder: pathlib.Path, shardings: Params | None = None, dtype=np.float32) -> Params:
    """The folder's weights as parameters of `dtype`, placed by `shardings` one parameter at a time.

    Raises:
      ModelError: no, truncated or inconsistent safetensors files, or tensors that are not this network's.
    """
    files = check_weights(model, folder)

    def load(path, abstract, sharding=None):
        key = _dotted(path)
        stacked = key.startswith("layers.")
        parts = []
        for name in _names(model.config, key):
            tensor = files[name].get_tensor(name)
            parts.append((tensor.T if _is_linear(key) else tensor).reshape(abstract.shape[stacked:]))
        value = (np.stack(parts) if stacked else parts[0]).astype(dtype)
        return jax.device_put(value) if sharding is None else put(value, sharding)

    trees = (model.abstract_params,) if shardings is None else (model.abstract_params, shardings)
    return jax.tree_util.tree_map_with_path(load, *trees)


def check_weights(model: Model, folder: pathlib.Path) -> dict[str, Any]:
    """Check names and shapes by the files' headers alone; returns checkpoint name -> open file.

    Raises:
      ModelError: as `load_params`.
    """
    files = _open_tensors(folder)
    _check_tensors(model, folder, files)
    return files


def save_params(model: Model, params: Params, folder: pathlib.Path, dtype: str, source: pathlib.Path) -> None:
    """Write a Hugging Face folder: weights of `dtype`, and config and tokenizer files copied from `source`."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.suffix in (".json", ".txt", ".jinja") and not file.name.endswith(".index.json"):
            if file.resolve() != (folder / file.name).resolve():
                shutil.copyfile(file, folder / file.name)
    for file in folder.glob("model*.safetensors*"):  # an index left here would win over the new file
        file.unlink()
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config_path.write_text(json.dumps({**config, "dtype": dtype}, indent=2) + "\n", encoding="utf-8")

    tensors = dict(_checkpoint_tensors(model, params, DTYPES[dtype]))
    shards, size = [{}], 0
    for name, value in tensors.items():
        if size + value.nbytes > MAX_SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    if len(shards) == 1:
        _write(shards[0], folder / "model.safetensors")
        return
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write(shard, folder / file)
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write(tensors: dict[str, np.ndarray], file: pathlib.Path) -> None:
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors makes it private


def _checkpoint_tensors(model: Model, params: Params, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        key = _dotted(path)
        value = np.asarray(jax.device_get(value)).astype(dtype)
        layers = value if key.startswith("layers.") else value[None]
        for name, part in zip(_names(model.config, key), layers, strict=True):
            shape = _checkpoint_shape(key, part.shape)
            yield (
                name,
                np.ascontiguousarray(part.reshape(shape[::-1]).T if _is_linear(key) else part.reshape(shape)),
            )


def _dotted(path) -> str:
    return ".".join(str(entry.key) for entry in path)


def _is_linear(key: str) -> bool:
    return key.startswith("layers.") and key.endswith(".kernel")


def _names(config: Qwen2Config, key: str) -> list[str]:
    """The checkpoint's tensors that make up a parameter: one, or one a layer."""
    if key.startswith("layers."):
        template = LAYER[key.removeprefix("layers.")]
        return [template.format(layer) for layer in range(config.num_hidden_layers)]
    return [TOP[key]]


def _checkpoint_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The checkpoint's shape of a parameter (of one layer): heads and head_dim are one axis there."""
    if key in TOP:
        return shape
    if key.endswith("o_proj.kernel"):
        return (shape[2], shape[0] * shape[1])
    if _is_linear(key):
        return (math.prod(shape[1:]), shape[0])
    return (math.prod(shape),)


def _open_tensors(folder: pathlib.Path) -> dict[str, Any]:
    """Checkpoint name -> the open safetensors file that holds it."""
    index = folder / "model.safetensors.index.json"
    indexed = None
    if index.is_file():
        try:
            indexed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{index} has no weight_map ({error!r}); download the folder again") from error
        files = [folder / file for file in sorted(set(indexed.values()))]
    else:
        files = [folder / "model.safetensors"]
    tensors: dict[str, Any] = {}
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file} is missing; download the model folder again (only safetensors are read)")
        try:
            handle = safe_open(file, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is not a whole safetensors file ({error}); download it again") from error
        for name in handle.keys():
            if name in tensors:
                raise ModelError(f"{file}: tensor {name} is in another shard too; download the folder again")
            tensors[name] = handle
    if indexed is not None and set(indexed) != set(tensors):
        odd = sorted(set(indexed) ^ set(tensors))
        raise ModelError(f"{index} and the shards disagree on {_few(odd)}; download the folder again")
    return tensors


def _check_tensors(model: Model, folder: pathlib.Path, files: dict[str, Any]) -> None:
    found = dict(files)
    if model.config.tie_word_embeddings and "lm_head.weight" in found:  # some tools write the tied matrix twice
        head, embedding = (found[name].get_tensor(name) for name in (TOP["lm_head.kernel"], TOP["embed_tokens.kernel"]))
        if not np.array_equal(head, embedding):
            raise ModelError(f"{folder}: tie_word_embeddings is true, yet lm_head.weight differs from embed_tokens")
        del found["lm_head.weight"]
    wanted = {}
    for path, abstract in jax.tree_util.tree_leaves_with_path(model.abstract_params):
        key = _dotted(path)
        shape = _checkpoint_shape(key, abstract.shape[key.startswith("layers.") :])
        wanted.update(dict.fromkeys(_names(model.config, key), shape))
    if missing := sorted(set(wanted) - set(found)):
        raise ModelError(f"{folder}: missing tensors {_few(missing)}; is it the model that config.json describes?")
    if unmapped := sorted(set(found) - set(wanted)):
        raise ModelError(f"{folder}: tensors that a Qwen2 network does not have: {_few(unmapped)}")
    for name, shape in wanted.items():
        if (actual := tuple(found[name].get_slice(name).get_shape())) != shape:
            raise ModelError(f"{folder}: {name} has shape {actual}, config.json asks for {shape}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
