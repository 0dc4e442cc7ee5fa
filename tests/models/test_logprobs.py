"""Log-probabilities and entropies by chunks, against the whole table of logits in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gvm_jax.models.config import Qwen2Config
from gvm_jax.models.logprobs import hidden_states, select_logprobs, token_logprobs
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.sharding import batch_sharding
from gvm_jax.runtime.cpu import outer, tensordot

CONFIG = Qwen2Config(
    vocab_size=19, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=4, rope_theta=1e4, rms_norm_eps=1e-6, tie_word_embeddings=True,
    max_position_embeddings=64,
)  # fmt: skip
TEMPERATURE = 0.7


MASKED = (range(3, 5), range(16, 19))
ALLOWED = np.array([*range(3), *range(5, 16)])


@pytest.fixture(scope="module")
def batch():
    """Tokens, wanted ones, cotangents; masked tokens are inputs, and none is wanted."""
    rng = np.random.default_rng(0)
    tokens, wanted = rng.integers(0, 19, (4, 9)), rng.random((4, 9)) < 0.6
    wanted[:, 0], wanted[1] = False, False
    assert not np.isin(tokens, ALLOWED).all()
    wanted &= np.isin(tokens, ALLOWED)
    return jnp.asarray(tokens), jnp.asarray(wanted), jnp.asarray(rng.normal(size=(4, 9)))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 5 * x, Model(CONFIG).init(1))


def states(module, tokens):
    return hidden_states(module, tokens, jnp.broadcast_to(jnp.arange(9), tokens.shape), jnp.zeros_like(tokens))


def through_chunks(params, batch, chunk=4, masked=(), **options):
    """(gradients, (log-probabilities, entropies)) of a loss of both."""
    model, (tokens, wanted, cotangents) = Model(dataclasses.replace(CONFIG, masked_ids=masked), **options), batch

    def loss(params):
        module = model.bind(params)
        logprobs, entropies = token_logprobs(module, states(module, tokens), tokens, wanted, TEMPERATURE, chunk)
        return (cotangents * logprobs).sum() + entropies.sum(), (logprobs, entropies)

    return jax.jit(jax.grad(loss, has_aux=True))(params)


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize(("masked", "allowed"), [((), np.arange(19)), (MASKED, ALLOWED)])
def test_values_and_gradients_are_those_of_the_whole_table(params, batch, masked, allowed):
    """A plain softmax over the allowed tokens alone; entropies have no gradient."""
    tokens, wanted, cotangents = batch

    def loss(params):
        module = Model(CONFIG).bind(params)
        table = jax.nn.log_softmax(module.logits(states(module, tokens))[:, :-1, allowed] / TEMPERATURE)
        places = jnp.minimum(jnp.searchsorted(allowed, tokens[:, 1:]), len(allowed) - 1)
        chosen = jnp.take_along_axis(table, places[..., None], axis=-1)[..., 0]
        return (jnp.where(wanted, cotangents, 0)[:, 1:] * chosen).sum(), (chosen, -(jnp.exp(table) * table).sum(-1))

    gradients, values = through_chunks(params, batch, masked=masked)
    exact, expected = jax.grad(loss, has_aux=True)(params)
    for mine, whole in zip(values, expected, strict=True):
        np.testing.assert_allclose(mine[:, 1:], np.where(wanted[:, 1:], whole, 0), atol=1e-5)
        assert (mine[:, 0] == 0).all()
    close(gradients, exact)


def test_a_masked_token_has_no_probability_and_the_others_have_all(params):
    module = Model(dataclasses.replace(CONFIG, masked_ids=MASKED)).bind(params)
    table = select_logprobs(jnp.tile(module.logits(jnp.ones((1, 16))), (19, 1)), jnp.arange(19), TEMPERATURE)
    assert (np.exp(table)[np.setdiff1d(np.arange(19), ALLOWED)] == 0).all()
    assert np.exp(np.float64(table[ALLOWED])).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "options", [{"chunk": 1}, {"chunk": 1000}, {"remat": "full"}, {"remat": "dots"}, "split"], ids=str
)
def test_chunks_remat_and_devices_change_nothing(params, batch, test_mesh, options):
    if options == "split":
        options = {"activation_sharding": batch_sharding(test_mesh(data=2, fsdp=2))}
    close(through_chunks(params, batch, masked=MASKED, **options), through_chunks(params, batch, masked=MASKED))


@pytest.mark.parametrize("name", ["remat", "attention", "weight_dtype"])
def test_unknown_options_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} = 'some': must be "):
        Model(CONFIG, **{name: "some"})


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
