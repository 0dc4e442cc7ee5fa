"""Model folders as people have them, made from golden/tiny_untied.

`LOADED` are those that transformers loads, by name: a function that changes the folder in place. Its logits are kept in
golden/odd_folders.npz.
"""

import functools
import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

TINY = pathlib.Path(__file__).parent / "golden/tiny_untied"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
INDEX = "model.safetensors.index.json"


def config(without=(), **changes):
    """Fields of config.json set to other values, or left out."""

    def change(folder):
        fields = json.loads((folder / "config.json").read_text()) | changes
        kept = {name: value for name, value in fields.items() if name not in without}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def weights(edit):
    """The tensors replaced by what `edit` makes of them, a dict by name."""

    def change(folder):
        file = folder / "model.safetensors"
        save_file(edit(load_file(file)), file, metadata={"format": "pt"})

    return change


def both(*changes):
    """One change after another."""

    def change(folder):
        for each in changes:
            each(folder)

    return change


def without(*names):
    """Some tensors left out."""
    return weights(lambda tensors: {name: value for name, value in tensors.items() if name not in names})


def cast(dtype, scale=1.0, names=""):
    """The tensors with `names` in their own name, times a scale, as another type."""
    return weights(
        lambda t: {k: (scale * v.astype(np.float64)).astype(dtype) if names in k else v for k, v in t.items()}
    )


def shards(folder, scale=1.0):
    """Two shards with every second tensor each, and their index, beside model.safetensors; returns the shards."""
    tensors = load_file(folder / "model.safetensors")
    names, index = sorted(tensors), {}
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, file in enumerate(files):
        save_file({name: np.float32(scale) * tensors[name] for name in names[i::2]}, folder / file)
        index |= dict.fromkeys(names[i::2], file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    return [folder / file for file in files]


def sharded(folder):
    """Shards in the place of model.safetensors."""
    shards(folder)
    (folder / "model.safetensors").unlink()


def stale_index(folder):
    """An index whose shards are gone, beside the whole file."""
    for file in shards(folder):
        file.unlink()


def incomplete_index(folder):
    """An index that names the shards, but not every tensor."""
    sharded(folder)
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(index))


def add(**tensors):
    """More tensors; "__" stands for a dot in their names."""
    return weights(lambda held: held | {name.replace("__", "."): value for name, value in tensors.items()})


tied = config(tie_word_embeddings=True)
frequencies = np.ones(8, np.float32)

LOADED = {
    "rope_theta on top and another in rope_parameters": config(
        rope_theta=1e6, rope_parameters={"rope_type": "default", "rope_theta": 100.0}
    ),
    "rope_theta on top and another in rope_scaling": config(
        ["rope_parameters"], rope_theta=1e6, rope_scaling={"type": "default", "rope_theta": 100.0}
    ),
    "rope_theta on top alone": config(["rope_parameters"], rope_theta=100.0),
    "rope_theta on top beside rope_parameters without": config(
        rope_theta=100.0, rope_parameters={"rope_type": "default"}
    ),
    "rope_theta nowhere": config(["rope_parameters", "rope_theta"]),
    "rope_scaling beside rope_parameters of yarn": config(
        rope_scaling={"rope_type": "default", "rope_theta": 100.0},
        rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4},
    ),
    "sliding window in no layer": config(
        ["layer_types"], use_sliding_window=True, sliding_window=4, max_window_layers=3
    ),
    "shards": sharded,
    "shards beside another whole file": functools.partial(shards, scale=0.5),
    "stale index": stale_index,
    "incomplete index": incomplete_index,
    "rotary frequencies of a layer": add(model__layers__0__self_attn__rotary_emb__inv_freq=frequencies),
    "rotary frequencies": add(model__rotary_emb__inv_freq=frequencies),
    "tied, the head alone": both(tied, without(EMBEDDING)),
    "tied, the head alone, in shards": both(tied, without(EMBEDDING), sharded),
    "tied, the embedding alone": both(tied, without(HEAD)),
    "tied, both": both(tied, weights(lambda tensors: tensors | {HEAD: tensors[EMBEDDING]})),
    "float64": cast(np.float64),
    "float16": cast(np.float16),
    "bfloat16 in part": cast(ml_dtypes.bfloat16, names="proj.weight"),
    "another dtype in the config": config(dtype="float16", torch_dtype="int4"),
}


def make(folder: pathlib.Path, change) -> pathlib.Path:
    """The tiny model in a new folder, changed."""
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(TINY / file, folder / file)
    change(folder)
    return folder
