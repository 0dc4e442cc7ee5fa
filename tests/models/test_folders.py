"""Model folders as people have them: the logits of transformers, or one line that says what is wrong."""

import json
import re
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gvm_jax.models.config import ModelError, Qwen2Config, model_folder
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.weights import check_weights, load_params
from tests.models.odd_folders import (
    EMBEDDING,
    HEAD,
    INDEX,
    LOADED,
    TINY,
    add,
    both,
    cast,
    config,
    make,
    sharded,
    shards,
    tied,
    weights,
    without,
)
from tests.models.test_parity import logits_of

GOLDEN = np.load(TINY.parent / "odd_folders.npz")
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("name", LOADED)
def test_logits_equal_transformers(tmp_path, name):
    folder = model_folder(str(make(tmp_path / "model", LOADED[name])))
    model = Model(Qwen2Config.from_folder(folder))
    logits = jax.jit(lambda p, t: logits_of(model, p, t))(load_params(model, folder), np.arange(24)[None])
    np.testing.assert_allclose(logits[0, -2:], GOLDEN[name], atol=1e-4, rtol=1e-5)


def fp8(folder):
    """The attention's and the MLP's matrices in 8 bits, which safetensors for numpy can neither write nor read."""
    file = folder / "model.safetensors"
    header, body = {}, b""
    for name, value in load_file(file).items():
        small = name.endswith("proj.weight")
        data = (value.astype(ml_dtypes.float8_e4m3fn) if small else value).tobytes()
        place = [len(body), len(body) + len(data)]
        header[name] = {"dtype": "F8_E4M3" if small else "F32", "shape": list(value.shape), "data_offsets": place}
        body += data
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def only(name, content=b""):
    """A file of another format in the place of model.safetensors."""

    def change(folder):
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content)

    return change


def replaced(name, text):
    return lambda folder: (folder / name).write_text(text)


def one_value(name, value):
    def edit(tensors):
        tensors[name].flat[7] = value
        return tensors

    return weights(edit)


def index_of(text):
    return both(sharded, replaced(INDEX, text))


def lost_shard(folder):
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def cut_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def twice(folder):
    first, second = shards(folder)
    (folder / "model.safetensors").unlink()
    save_file(load_file(first) | load_file(second), second)


def gptq(tensors):
    return tensors | {"model.layers.0.self_attn.q_proj.qweight": np.zeros((6, 64), np.int32)}


yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
REFUSED = {
    "another network": (config(model_type="llama"), "model_type is 'llama'"),
    "another activation": (config(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "vocab_size null": (config(vocab_size=None), "'vocab_size' expected int, got NoneType"),
    "rope_theta that is a text": (config(rope_parameters={"rope_theta": "1e6"}), "rope_theta is '1e6'"),
    "tie_word_embeddings that is a text": (
        config(tie_word_embeddings="false"),
        "'tie_word_embeddings' expected bool, got str",
    ),
    "KV heads that do not divide": (
        config(num_key_value_heads=3),
        "num_key_value_heads is 3; it must divide",
    ),
    "no number of heads": (config(num_attention_heads=None, head_dim=None), "'num_attention_heads' expected int"),
    "yarn beside rope_parameters": (config(rope_scaling=yarn), "rope_type is 'yarn'"),
    "unknown rope": (config(rope_parameters={"rope_type": "own"}), "rope_type is 'own'"),
    "rope that is a text": (config(rope_scaling="yarn"), "'rope_parameters' with value 'yarn'"),
    "rope by layer type": (config(rope_parameters={"full_attention": yarn}), "rope_type is None"),
    "rope_theta null": (config(["rope_parameters"], rope_theta=None), "rope_theta is None"),
    "rope_theta infinite": (
        config(rope_parameters={"rope_type": "default", "rope_theta": float("inf")}),
        "rope_theta is inf",
    ),
    "part of the head rotated": (config(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    "sliding window": (
        config(["layer_types"], use_sliding_window=True, sliding_window=4, max_window_layers=1),
        "layer_types (or use_sliding_window) is 'full_attention and sliding_attention'",
    ),
    "bidirectional": (config(is_causal=False), "is_causal is False"),
    "layers of their own": (config(per_layer_config={"0": {"head_dim": 8}}), "per_layer_config is"),
    "odd head_dim": (config(head_dim=15), "even rotary dimension"),
    "odd head_dim, computed": (config(["head_dim"], hidden_size=60), "head_dim is 15"),
    "no head_dim": (config(head_dim=0), "head_dim is 0"),
    "sizes without a default": (config(["vocab_size", "hidden_size"]), "config.json has no vocab_size, hidden_size"),
    "size that is a text": (config(vocab_size="96"), "'vocab_size' expected int, got str (value: '96')"),
    "no layers": (config(["layer_types"], num_hidden_layers=0), "layer_types"),
    "not finite epsilon": (config(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
    "GPTQ config": (config(quantization_config={"quant_method": "gptq"}), "quantization_config is"),
    "config cut short": (replaced("config.json", '{"model_type": "qw'), "cannot be read as JSON"),
    "config of no object": (replaced("config.json", "[1]"), "holds no JSON object"),
    "fp8": (fp8, "is of type F8_E4M3"),
    "fp8, tied and written twice": (
        both(tied, weights(lambda t: t | {HEAD: t[EMBEDDING]}), fp8),
        "is of type F8_E4M3",
    ),
    "int8": (cast(np.int8, scale=40, names="proj.weight"), "is of type I8"),
    "int32": (cast(np.int32, scale=40), "is of type I32"),
    "GPTQ": (weights(gptq), "q_proj.qweight is of type I32"),
    "NaN": (one_value(UP, np.nan), f"{UP} has 1 of 3840 values that are NaN or infinite"),
    "infinite": (one_value("model.norm.weight", -np.inf), "model.norm.weight has 1 of 48 values"),
    "beyond float32": (cast(np.float64, scale=1e300, names=UP), f"{UP} has 3840 of 3840 values"),
    "tied, heads of other values": (tied, f"{HEAD} differs from {EMBEDDING}; set it to false"),
    "head alone of an untied model": (without(EMBEDDING), f"missing tensors {EMBEDDING}"),
    "the other way round": (without(HEAD), f"missing tensors {HEAD}"),
    "names of a base model": (
        weights(lambda t: {k.removeprefix("model."): v for k, v in t.items()}),
        "does not have: embed_tokens.weight",
    ),
    "value head": (add(v_head__weight=np.ones((1, 48), np.float32)), "does not have: v_head.weight"),
    "fewer layers": (config(["layer_types"], num_hidden_layers=2), "does not have: model.layers.2.input_layernorm"),
    "more layers": (config(["layer_types"], num_hidden_layers=4), "missing tensors model.layers.3.input_layernorm"),
    "another vocabulary": (config(vocab_size=100), "has shape (96, 48), config.json asks for (100, 48)"),
    "adapter beside": (replaced("adapter_config.json", "{}"), "holds an adapter (adapter_config.json)"),
    "adapter alone": (
        both(only("adapter_config.json", b"{}"), lambda folder: (folder / "config.json").unlink()),
        "holds an adapter (adapter_config.json)",
    ),
    "PyTorch's file alone": (only("pytorch_model.bin"), "weights found: pytorch_model.bin"),
    "GGUF alone": (only("model-q8_0.gguf"), "weights found: model-q8_0.gguf"),
    "no weights": (only("notes.txt"), "weights found: none"),
    "pointer of git-lfs": (only("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "not a whole"),
    "file cut short": (cut_short, "not a whole safetensors file"),
    "empty file": (only("model.safetensors"), "not a whole safetensors file"),
    "lost shard": (lost_shard, "model-00002-of-00002.safetensors is missing"),
    "a tensor in two shards": (twice, "is in another shard too"),
    "index cut short": (index_of('{"weight_map": '), "has no weight_map"),
    "index of a list": (index_of("[]"), "has no weight_map"),
    "index without files": (index_of('{"weight_map": null}'), "has no weight_map"),
    "index of numbers": (index_of('{"weight_map": {"a": 1}}'), "has no weight_map"),
    "index of folders": (index_of('{"weight_map": {"a": {}}}'), "has no weight_map"),
    "index that is empty": (index_of('{"weight_map": {}}'), "missing tensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_line_says_what_is_wrong(tmp_path, name):
    change, message = REFUSED[name]
    folder = make(tmp_path / "model", change)
    with pytest.raises(ModelError, match=re.escape(message)) as raised:
        model = Model(Qwen2Config.from_folder(model_folder(str(folder))))
        load_params(model, folder)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_types_and_names_are_checked_without_reading_a_weight(tmp_path):
    folder = make(tmp_path / "model", one_value(UP, np.nan))
    check_weights(Model(Qwen2Config.from_folder(folder)), folder)  # NaN shows when weights are read
    with pytest.raises(ModelError, match="is of type F8_E4M3"):
        check_weights(Model(Qwen2Config.from_folder(TINY)), make(tmp_path / "small", fp8))


def test_it_is_said_which_of_two_sets_of_weights_is_read(tmp_path, caplog):
    folder = make(tmp_path / "model", LOADED["shards beside another whole file"])
    with caplog.at_level("WARNING"):
        check_weights(Model(Qwen2Config.from_folder(folder)), folder)
    assert f"{folder}/model.safetensors is read, as transformers does; {INDEX} is not" in caplog.text
