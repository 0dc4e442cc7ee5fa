"""Weights in and out: exact round trips. What is refused of a folder stands in test_folders.py."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from gvm_jax.models import weights
from gvm_jax.models.config import ModelError, Qwen2Config, model_folder


def test_round_trip_is_exact(tiny, tmp_path):
    model, params, folder = tiny
    weights.save_params(model, params, tmp_path, "float32", folder)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    assert Qwen2Config.from_folder(tmp_path) == model.config
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def test_shards_come_back_and_a_second_export_replaces_them(tiny, tmp_path, monkeypatch):
    model, params, folder = tiny
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 100_000)
    weights.save_params(model, params, tmp_path, "float32", folder)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) >= 3
    jax.tree.map(np.testing.assert_array_equal, params, weights.load_params(model, tmp_path))
    monkeypatch.undo()
    doubled = jax.tree.map(lambda x: 2 * x, params)
    weights.save_params(model, doubled, tmp_path, "float32", folder)
    jax.tree.map(np.testing.assert_array_equal, doubled, weights.load_params(model, tmp_path))


def test_the_fingerprint_is_of_the_content_not_of_its_files(tiny, tmp_path, monkeypatch):
    model, params, folder = tiny

    def fingerprint(params, name, dtype):
        weights.save_params(model, params, tmp_path / name, dtype, folder)
        return weights.fingerprint(weights.check_weights(model, tmp_path / name))

    params = jax.tree.map(lambda x: np.asarray(x).astype(jax.numpy.bfloat16).astype(np.float32), params)
    whole = fingerprint(params, "whole", "float32")
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 100_000)
    assert fingerprint(params, "shards", "float32") == fingerprint(params, "bfloat16", "bfloat16") == whole
    leaves, tree = jax.tree.flatten(params)
    changed = {
        fingerprint(jax.tree.unflatten(tree, [*leaves[:i], leaf * 1.5 + 1, *leaves[i + 1 :]]), str(i), "float32")
        for i, leaf in enumerate(leaves)
    }
    assert len(changed | {whole}) == len(leaves) + 1


@pytest.mark.parametrize(("value", "dtype"), [(7e4, "float16"), (np.nan, "bfloat16"), (-np.inf, "float32")])
def test_values_that_a_type_does_not_hold_are_not_written(tiny, tmp_path, value, dtype):
    model, params, folder = tiny
    broken = {**params, "norm": {"scale": params["norm"]["scale"].at[3].set(value)}}
    with pytest.raises(ModelError, match=rf"model\.norm\.weight has values that are NaN, infinite or beyond {dtype}"):
        weights.save_params(model, broken, tmp_path / "out", dtype, folder)
    assert not (tmp_path / "out").exists()


def test_model_folder_errors(tmp_path):
    for path in ("", str(tmp_path), "./nowhere", "/nowhere/at/all"):
        with pytest.raises(ModelError, match=r"model\.path"):
            model_folder(path)


def test_random_parameters_have_the_declared_tree(tiny):
    model, params, _ = tiny
    fresh = model.init(0)
    assert jax.tree.map(np.shape, fresh) == jax.tree.map(np.shape, params)
