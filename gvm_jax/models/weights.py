"""Hugging Face safetensors in and out of the parameters, exactly.

One table says which checkpoint tensor is which parameter; reading and writing both follow it. Of several files
those are read that transformers would read. Every name, shape and type is checked before anything is loaded: a missing,
unmapped or duplicate tensor is an error, never skipped, but for rotary frequencies, which are computed.
"""

import hashlib
import json
import math
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import ml_dtypes
import numpy as np
from absl import logging
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
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")  # the types that weights are read from, under safetensors' names
MAX_SHARD_BYTES = 5 * 10**9  # as Hugging Face shards


def load_params(model: Model, folder: pathlib.Path, shardings: Params | None = None, dtype=np.float32) -> Params:
    """The folder's weights as parameters of `dtype`, placed by `shardings` one parameter at a time.

    Raises:
      ModelError: no, truncated or inconsistent safetensors files, tensors that are not this network's, no floats, or
        not finite.
    """
    tensors = _open_tensors(folder)
    _check_tensors(model, folder, tensors)

    def load(path, abstract, sharding=None):
        key = _dotted(path)
        value = np.empty(abstract.shape, dtype)
        for part, name in zip(value if key.startswith("layers.") else [value], _names(model.config, key), strict=True):
            tensor = tensors[name][:]
            with np.errstate(over="ignore"):  # values beyond float32 become infinite, an error below
                part[...] = (tensor.T if _is_linear(key) else tensor).reshape(part.shape)
            if not (finite := np.isfinite(part)).all():
                raise ModelError(
                    f"{folder}: {name} has {(~finite).sum()} of {part.size} values that are NaN or infinite; the "
                    "weights are damaged: copy the folder again, or export the model again"
                )
        return jax.device_put(value) if sharding is None else put(value, sharding)

    trees = (model.abstract_params,) if shardings is None else (model.abstract_params, shardings)
    return jax.tree_util.tree_map_with_path(load, *trees)


def check_weights(model: Model, folder: pathlib.Path) -> dict[str, Any]:
    """Check names, shapes and types by the files' headers alone; warn where a whole file hides shards.

    Returns:
      Checkpoint name -> the tensor in its open file, which `[:]` reads.

    Raises:
      ModelError: as `load_params`, but for values.
    """
    tensors = _open_tensors(folder)
    _check_tensors(model, folder, tensors)
    if (folder / SINGLE).is_file() and (folder / INDEX).exists():
        logging.warning("%s is read, as transformers does; %s is not", folder / SINGLE, INDEX)
    return tensors


def fingerprint(tensors: dict[str, Any]) -> str:
    """A hash of the names, shapes and first numbers of all tensors, whichever files and types hold them.

    All numbers would take as long as loading the model, and the first ones are enough: training changes whole matrices.
    `runtime/checksums.py` covers every bit of arrays that are loaded.

    Args:
      tensors: as `check_weights` returns them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        shape = tuple(tensor.get_shape())
        digest.update(f"{name} {shape} ".encode())
        first = min(1024 if len(shape) == 1 else 2, shape[0])
        digest.update(np.asarray(tensor[:first]).astype(np.float32).tobytes())
    return digest.hexdigest()


def save_params(model: Model, params: Params, folder: pathlib.Path, dtype: str, source: pathlib.Path) -> None:
    """Write a Hugging Face folder: weights of `dtype`, and config and tokenizer files copied from `source`.

    Raises:
      ModelError: a weight is not finite in that type; nothing is written.
    """
    tensors = dict(_checkpoint_tensors(model, params, DTYPES[dtype]))
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise ModelError(
                f"{name} has values that are NaN, infinite or beyond {dtype}; bfloat16 and float32 reach further than "
                "float16, and an earlier checkpoint may still be finite"
            )
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

    from huggingface_hub import split_state_dict_into_shards_factory  # slow to import, and only exports need it

    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda value: value.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=MAX_SHARD_BYTES,
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors makes it private
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _checkpoint_tensors(model: Model, params: Params, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        key = _dotted(path)
        with np.errstate(over="ignore"):  # the caller checks
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
    """Checkpoint name -> the tensor in its open safetensors file, of the files that transformers would read."""
    single, index = folder / SINGLE, folder / INDEX
    tensors: dict[str, Any] = {}
    for file in [single] if single.is_file() else _shards(index):
        if not file.is_file():
            raise ModelError(f"{file} is missing; download the model folder again")
        try:
            handle = safe_open(file, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} is not a whole safetensors file ({error}); download it again") from error
        for name in handle.keys():
            if name in tensors:
                raise ModelError(f"{file}: tensor {name} is in another shard too; download the folder again")
            tensors[name] = handle.get_slice(name)
    return tensors


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    """The files that the index names; their own headers say what each holds."""
    folder = index.parent
    if not index.is_file():
        formats = (".bin", ".gguf", ".pt", ".pth", ".safetensors")
        found = ", ".join(sorted(file.name for file in folder.iterdir() if file.suffix in formats))
        raise ModelError(
            f"{folder} has no {SINGLE} and no {INDEX} (weights found: {found or 'none'}); "
            "download them, or save the model with save_pretrained of transformers"
        )
    try:
        files = sorted({folder / file for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index} has no weight_map from tensors to files ({error!r}); download the folder again"
        ) from error
    return files


def _check_tensors(model: Model, folder: pathlib.Path, tensors: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.endswith("rotary_emb.inv_freq")]:
        del tensors[name]  # old tools write the rotary frequencies, which config.json determines
    for name, tensor in tensors.items():
        if (dtype := tensor.get_dtype()) not in FLOATS:
            raise ModelError(
                f"{folder}: {name} is of type {dtype}, which quantized weights are; only {', '.join(FLOATS)} are read: "
                "give the folder of the unquantized model"
            )
    if model.config.tie_word_embeddings and TOP["lm_head.kernel"] in tensors:
        _tie(folder, tensors)
    wanted = {}
    for path, abstract in jax.tree_util.tree_leaves_with_path(model.abstract_params):
        key = _dotted(path)
        shape = _checkpoint_shape(key, abstract.shape[key.startswith("layers.") :])
        wanted.update(dict.fromkeys(_names(model.config, key), shape))
    missing, unmapped = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    problems = [f"missing tensors {_few(missing)}"] if missing else []
    problems += [f"tensors that a Qwen2 network does not have: {_few(unmapped)}"] if unmapped else []
    if problems:
        raise ModelError(f"{folder}: {'; '.join(problems)}; is it the model that config.json describes?")
    for name, shape in wanted.items():
        if (actual := tuple(tensors[name].get_shape())) != shape:
            raise ModelError(f"{folder}: {name} has shape {actual}, config.json asks for {shape}")


def _tie(folder: pathlib.Path, tensors: dict[str, Any]) -> None:
    """Leaves one of the two names of a tied matrix: some tools write both, some the head's alone."""
    embedding, head = TOP["embed_tokens.kernel"], TOP["lm_head.kernel"]
    written = tensors.pop(head)
    first = tensors.setdefault(embedding, written)
    if first is not written and not np.array_equal(first[:], written[:], equal_nan=True):
        raise ModelError(
            f"{folder}: tie_word_embeddings is true, yet {head} differs from {embedding}; set it to false in "
            f"config.json to use both, or remove {head}"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
