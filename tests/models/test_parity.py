"""The network against transformers' Qwen2, through golden files (make_golden.py) and live where torch is there."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gvm_jax.models import packed_attention
from gvm_jax.models.packed_attention import segment_attention

GOLDEN = pathlib.Path(__file__).parent / "golden"


def logits_of(model, params, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    module = model.bind(params)
    hidden, _ = module(tokens, positions, segment_attention(jnp.ones_like(tokens)))
    return module.logits(hidden)


def test_tiny_untied_logits_equal_transformers(tiny):
    model, params, folder = tiny
    golden = np.load(folder / "golden.npz")
    logits = jax.jit(lambda p, t: logits_of(model, p, t))(params, golden["tokens"])
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-4, rtol=1e-5)


def test_padding_and_other_segments_change_nothing(tiny):
    model, params, folder = tiny
    tokens = np.load(folder / "golden.npz")["tokens"]
    golden = np.load(folder / "golden.npz")["logits"]
    packed = np.concatenate([tokens[0, :20], tokens[1, :15], np.zeros(5, np.int32)])[None]
    positions = np.concatenate([np.arange(20), np.arange(15), np.zeros(5, np.int32)])[None]
    segments = np.concatenate([np.full(20, 1), np.full(15, 2), np.zeros(5, np.int32)])[None]
    module = model.bind(params)
    logits = module.logits(module(packed, positions, segment_attention(jnp.asarray(segments)))[0])
    np.testing.assert_allclose(logits[0, :20], golden[0, :20], atol=1e-4)
    np.testing.assert_allclose(logits[0, 20:35], golden[1, :15], atol=1e-4)


def test_blocks_of_queries_change_nothing(tiny, monkeypatch):
    model, params, folder = tiny
    golden = np.load(folder / "golden.npz")
    monkeypatch.setattr(packed_attention, "QUERY_BLOCK", 16)  # 40 tokens: two blocks and a half
    np.testing.assert_allclose(logits_of(model, params, golden["tokens"]), golden["logits"], atol=1e-4, rtol=1e-5)


@pytest.mark.slow
def test_real_logits_equal_transformers(qwen25):
    model, params, _ = qwen25
    golden = np.load(GOLDEN / "qwen25_0p5b.npz")
    logits = jax.jit(lambda p, t: logits_of(model, p, t))(params, golden["prompt_0"][None])[0]
    np.testing.assert_allclose(logits[:, golden["columns"]], golden["logits"], atol=1e-4)


def test_live_transformers_agrees(tiny):
    torch = pytest.importorskip("torch")
    from transformers import Qwen2ForCausalLM

    model, params, folder = tiny
    reference = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = np.random.default_rng(1).integers(0, model.config.vocab_size, (2, 33))
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(logits_of(model, params, tokens), expected, atol=1e-4)
