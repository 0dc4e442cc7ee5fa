"""Log-probabilities and entropies by chunks, against the whole table of logits in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gvm_jax.models.config import Qwen2Config
from gvm_jax.models.logprobs import hidden_states, select_logprobs, token_logprobs
from gvm_jax.models.qwen2 import REMAT, Model
from gvm_jax.models.sharding import batch_sharding
from gvm_jax.runtime.cpu import outer, tensordot

CONFIG = Qwen2Config(
    vocab_size=19, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=4, rope_theta=1e4, rms_norm_eps=1e-6, tie_word_embeddings=True,
    max_position_embeddings=64,
)  # fmt: skip
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    tokens, wanted = rng.integers(0, 19, (3, 9)), rng.random((3, 9)) < 0.6
    wanted[:, 0], wanted[1] = False, False
    return jnp.asarray(tokens), jnp.asarray(wanted), jnp.asarray(rng.normal(size=(3, 9)))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 5 * x, Model(CONFIG).init(1))


def through_chunks(params, batch, chunk, remat="none", masked=(), activation_sharding=None):
    config = dataclasses.replace(CONFIG, masked_ids=masked)
    model, (tokens, wanted, cotangents) = Model(config, remat=remat, activation_sharding=activation_sharding), batch
    segments, positions = jnp.zeros_like(tokens), jnp.broadcast_to(jnp.arange(9), tokens.shape)

    def loss(params):
        module = model.bind(params)
        hidden = hidden_states(module, tokens, positions, segments)
        logprobs, entropies = token_logprobs(module, hidden, tokens, wanted, TEMPERATURE, chunk)
        return (cotangents * logprobs).sum() + entropies.sum(), (logprobs, entropies)

    return jax.jit(jax.grad(loss, has_aux=True))(params)


@pytest.fixture(scope="module")
def found(params, batch):
    return through_chunks(params, batch, chunk=4)


def test_values_are_those_of_the_whole_table(params, batch, found):
    tokens, wanted, _ = batch
    module = Model(CONFIG).bind(params)
    hidden = hidden_states(module, tokens, jnp.broadcast_to(jnp.arange(9), tokens.shape), jnp.zeros_like(tokens))
    scaled = np.asarray(module.logits(hidden), np.float64)[:, :-1] / TEMPERATURE
    table = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    logprobs = np.take_along_axis(table, np.asarray(tokens)[:, 1:, None], axis=-1)[..., 0]
    entropies = -(np.exp(table) * table).sum(-1)
    mask = np.asarray(wanted)
    for mine, whole in zip(found[1], (logprobs, entropies), strict=True):
        np.testing.assert_allclose(mine[:, 1:], np.where(mask[:, 1:], whole, 0), atol=1e-5)
        assert (mine[:, 0] == 0).all()


def test_gradients_are_those_of_the_whole_table_without_the_entropies(params, batch, found):
    tokens, wanted, cotangents = batch

    def loss(params):
        module = Model(CONFIG).bind(params)
        positions = jnp.broadcast_to(jnp.arange(9), tokens.shape)
        hidden = hidden_states(module, tokens, positions, jnp.zeros_like(tokens))
        table = jax.nn.log_softmax(module.logits(hidden)[:, :-1] / TEMPERATURE)
        logprobs = jnp.take_along_axis(table, tokens[:, 1:, None], axis=-1)[..., 0]
        return (jnp.where(wanted, cotangents, 0)[:, 1:] * logprobs).sum()

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found[0], jax.grad(loss)(params))


MASKED = (range(3, 5), range(16, 19))
ALLOWED = np.array([*range(3), *range(5, 16)])


@pytest.fixture(scope="module")
def allowed_batch(batch):
    """The batch with inputs that are masked and with no target that is."""
    tokens, wanted, cotangents = batch
    assert not np.isin(tokens, ALLOWED).all()
    return tokens, wanted & np.isin(tokens, ALLOWED), cotangents


def test_masked_tokens_have_no_part_in_values_and_gradients(params, allowed_batch):
    """A plain softmax over the other tokens alone."""
    tokens, wanted, cotangents = allowed_batch
    gradients, (logprobs, entropies) = through_chunks(params, allowed_batch, chunk=4, masked=MASKED)

    def loss(params):
        module = Model(CONFIG).bind(params)
        hidden = hidden_states(module, tokens, jnp.broadcast_to(jnp.arange(9), tokens.shape), jnp.zeros_like(tokens))
        table = jax.nn.log_softmax(module.logits(hidden)[:, :-1, ALLOWED] / TEMPERATURE)
        places = jnp.searchsorted(ALLOWED, tokens[:, 1:])
        chosen = jnp.take_along_axis(table, jnp.minimum(places, len(ALLOWED) - 1)[..., None], axis=-1)[..., 0]
        return (jnp.where(wanted, cotangents, 0)[:, 1:] * chosen).sum(), (chosen, -(jnp.exp(table) * table).sum(-1))

    exact, expected = jax.grad(loss, has_aux=True)(params)
    for mine, whole in zip((logprobs, entropies), expected, strict=True):
        np.testing.assert_allclose(mine[:, 1:], np.where(wanted[:, 1:], whole, 0), atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradients, exact)


def test_a_masked_token_has_no_probability_and_the_others_have_all(params):
    module = Model(dataclasses.replace(CONFIG, masked_ids=MASKED)).bind(params)
    table = select_logprobs(jnp.tile(module.logits(jnp.ones((1, 16))), (19, 1)), jnp.arange(19), TEMPERATURE)
    assert (np.exp(table)[np.setdiff1d(np.arange(19), ALLOWED)] == 0).all()
    assert np.exp(np.float64(table[ALLOWED])).sum() == pytest.approx(1, abs=1e-6)


def test_rows_over_devices_mask_the_same(params, allowed_batch, test_mesh):
    four = [jnp.concatenate([x, x[:1]]) for x in allowed_batch]
    alone = through_chunks(params, four, 4, masked=MASKED)
    split = through_chunks(
        params, four, 4, masked=MASKED, activation_sharding=batch_sharding(test_mesh(data=2, fsdp=2))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), split, alone)


@pytest.mark.parametrize("chunk", [1, 1000])
def test_the_chunk_changes_nothing(params, batch, found, chunk):
    other = through_chunks(params, batch, chunk)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, other)


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_what_is_computed_again_changes_nothing(params, batch, found, remat):
    other = through_chunks(params, batch, 4, remat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, other)


def test_an_unknown_remat_is_refused():
    with pytest.raises(ValueError, match=r"remat = 'some': must be one of full, dots, none"):
        Model(CONFIG, remat="some")


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_the_gradient_of_a_product_is_that_of_differentiation(dtype):
    rng = np.random.default_rng(1)
    x, w, cotangents = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((7, 5), (5, 3), (7, 3)))
    product, pull = jax.vjp(lambda x, w: tensordot(x, w, 1), x, w)
    of_x, of_w = pull(cotangents)
    x, w, cotangents = (np.asarray(a, np.float64) for a in (x, w, cotangents))
    tolerance = 1e-5 if dtype == np.float32 else 2e-2
    for mine, exact in ((product, x @ w), (of_x, cotangents @ w.T), (of_w, x.T @ cotangents)):
        assert mine.dtype == dtype
        np.testing.assert_allclose(np.asarray(mine, np.float64), exact, rtol=tolerance, atol=tolerance)
    assert outer(jnp.asarray(x, dtype), jnp.asarray(cotangents, dtype)).dtype == np.float32


def test_layers_are_cast_and_embeddings_are_not(params):
    cast = Model(CONFIG, jnp.bfloat16).cast(params)
    assert {x.dtype for x in jax.tree.leaves(cast["layers"])} == {jnp.dtype(jnp.bfloat16)}
    assert cast["embed_tokens"] is params["embed_tokens"]
