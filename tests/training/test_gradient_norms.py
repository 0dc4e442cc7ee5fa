"""Per-sample gradient norms against one plain jax.grad for each sample, and against float64."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gvm_jax.models.config import Qwen2Config, in_ranges
from gvm_jax.models.logprobs import select_logprobs
from gvm_jax.models.packed_attention import segment_attention
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.weights import load_params
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.training import prediction_errors as errors_module
from gvm_jax.training.gradient_norms import (
    GradientNormSettings,
    measured_parts,
    per_sample_gradient_norms,
    prediction_errors,
    split_params,
    wanted_samples,
)

QUICKSTART = pathlib.Path(__file__).parent.parent.parent / "configs/quickstart_model"


@pytest.fixture(scope="module")
def tied():
    model = Model(Qwen2Config.from_folder(QUICKSTART))
    return model, load_params(model, QUICKSTART)


@pytest.fixture(params=["untied", "tied", "masked"])
def network(request, tiny, tied):
    """(model, params) of the random untied model, and of the quickstart's trained and tied one, also with a mask."""
    if request.param == "masked":
        return Model(dataclasses.replace(tied[0].config, masked_ids=(range(3, 5), range(9, 14)))), tied[1]
    return tied if request.param == "tied" else tiny[:2]


@pytest.fixture(params=["any tokens", "few tokens"])
def rollouts(request, make_rollouts, network):
    """Ragged rows; of few tokens most occur several times, in prompt and response."""
    drawn, config = make_rollouts(counts=[3, 2, 2]), network[0].config
    tokens = drawn.tokens % (5 if request.param == "few tokens" else config.vocab_size)
    # Masked ones are in prompts only.
    response = np.arange(tokens.shape[1]) >= drawn.prompt_lengths[:, None]
    return drawn.replace(tokens=np.where(response & in_ranges(tokens, config.masked_ids), 0, tokens))


def reference_norms(model, params, rollouts, row, temperature):
    """The norms of the whole gradient's parts: input embeddings, output head, and their sum's where they are tied.

    A dense forward pass over the unpadded sequence, with the two uses of a tied matrix apart, and a softmax over the
    tokens that are not masked alone.
    """
    n, r = int(rollouts.prompt_lengths[row]), int(rollouts.response_lengths[row])
    tokens = rollouts.tokens[row : row + 1, : n + r]
    is_tied = model.config.tie_word_embeddings
    apart = Model(dataclasses.replace(model.config, tie_word_embeddings=False, masked_ids=()))
    allowed = np.flatnonzero(~in_ranges(np.arange(model.config.vocab_size), model.config.masked_ids))

    def log_likelihood(params):
        module = apart.bind(params)
        hidden, _ = module(tokens, np.arange(n + r)[None], segment_attention(np.ones_like(tokens)))
        logits = module.logits(hidden)[:, n - 1 : -1, allowed]
        return select_logprobs(logits, np.searchsorted(allowed, tokens[:, n:]), temperature).sum()

    gradient = jax.grad(log_likelihood)({**params, "lm_head": params["embed_tokens"]} if is_tied else params)
    parts = [np.asarray(gradient[name]["kernel"], np.float64) for name in ("embed_tokens", "lm_head")]
    parts = [sum(parts), parts[1]] if is_tied else parts
    return dict(zip(("embed_tokens", "lm_head"), map(np.linalg.norm, parts), strict=True))


def measure(model, params, rollouts, wanted, settings, temperature):
    def norms(params, *arrays):
        return per_sample_gradient_norms(model, params, *arrays, settings, temperature, logprob_chunk=4)

    return jax.jit(norms)(params, rollouts, wanted)


@pytest.mark.parametrize(
    ("method", "parameters", "chunk"),
    [("vmap", "embed_tokens", 2), ("gram", "embed_tokens", 2), ("gram", "embed_tokens", 5)],
)
def test_norms_equal_one_gradient_a_sample(network, rollouts, method, parameters, chunk, monkeypatch):
    monkeypatch.setattr(errors_module, "VOCABULARY_BLOCK", 10)  # divides neither vocabulary: the last blocks overlap
    monkeypatch.setattr(errors_module, "PRODUCT_BLOCK", 4)
    wanted = np.isin(np.arange(7), [0, 3, 4, 6])
    rollouts.response_lengths[2] = 0  # an empty response among those that are not wanted
    settings = GradientNormSettings(parameters, chunk, max_samples=0, method=method)
    norms = measure(*network, rollouts, wanted, settings, 0.8)
    for row in np.flatnonzero(wanted):
        expected = reference_norms(*network, rollouts, row, 0.8)["embed_tokens"]
        np.testing.assert_allclose(norms[row], expected, rtol=1e-4)
    np.testing.assert_array_equal(norms[~wanted], 0.0)


@pytest.mark.parametrize("method", ["gram", "vmap"])
def test_norms_of_numpy_arrays_need_no_jit(method, tiny, make_rollouts):
    model, params, _ = tiny
    rollouts, wanted = make_rollouts(counts=[2, 1]), np.array([True, False, True])
    settings = GradientNormSettings("embed_tokens", 2, max_samples=0, method=method)
    found = per_sample_gradient_norms(
        model, jax.tree.map(np.asarray, params), rollouts, wanted, settings, 0.8, logprob_chunk=4
    )
    expected = [reference_norms(model, params, rollouts, row, 0.8)["embed_tokens"] * wanted[row] for row in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_head_of_an_untied_model_and_both_of_its_matrices(tiny, make_rollouts, temperature):
    model, params, _ = tiny
    rollouts, rows = make_rollouts(counts=[2, 2]), np.arange(4)
    expected = [reference_norms(model, params, rollouts, row, temperature) for row in rows]
    for pattern in ("lm_head", "embed_tokens|lm_head"):
        settings = GradientNormSettings(pattern, chunk=4, max_samples=0, method="gram")
        norms = measure(model, params, rollouts, np.ones(4, bool), settings, temperature)
        squares = [sum(norms[name] ** 2 for name in pattern.split("|")) for norms in expected]
        np.testing.assert_allclose(norms, np.sqrt(squares), rtol=1e-4)


def test_rows_beside_an_empty_response_are_finite(tied, make_rollouts):
    rollouts = make_rollouts(counts=[3])
    rollouts = rollouts.replace(tokens=rollouts.tokens % 24, response_lengths=rollouts.response_lengths * [1, 0, 1])
    settings = GradientNormSettings("embed_tokens", chunk=3, max_samples=0, method="gram")
    norms = measure(*tied, rollouts, np.ones(3, bool), settings, 1.0)
    assert norms[0] > 0 and norms[1] == 0 and norms[2] > 0 and np.isfinite(norms).all()


def test_errors_of_confident_predictions_keep_their_digits():
    """1 - π is far below float32's resolution at 1, and the products of such errors are smaller still."""
    rng = np.random.default_rng(0)
    head, states = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(2, 6, 8)).astype(np.float32)
    targets = np.argmax(states @ head.T, -1)
    errors = prediction_errors(head, states, targets, np.ones((2, 6), bool), 0.4, products=True, vjp=True)

    logits = states.astype(np.float64) @ head.T / 0.4
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    own = np.eye(50, dtype=bool)[targets]
    missed = (probabilities * ~own).sum(-1)
    assert missed.min() < 1e-7
    expected = np.where(own, missed[..., None], -probabilities)
    np.testing.assert_allclose(errors.missed, missed, rtol=1e-4)
    squares = np.einsum("btv,btv->bt", expected, expected)
    np.testing.assert_allclose(np.diagonal(errors.products, axis1=1, axis2=2), squares, rtol=1e-4)
    lengths = np.sqrt(squares[:, :, None] * squares[:, None])
    np.testing.assert_allclose(errors.products / lengths, expected @ expected.swapaxes(1, 2) / lengths, atol=1e-4)
    vjp = expected @ head / 0.4
    size = np.linalg.norm(vjp, axis=-1, keepdims=True)
    np.testing.assert_allclose(errors.vjp / size, vjp / size, atol=1e-4)
    tokens = np.tile(np.arange(50), (2, 1))
    np.testing.assert_allclose(errors.at(head, tokens), expected, rtol=1e-4)


def test_gram_takes_one_forward_and_one_backward_of_activations_alone(tiny):
    """By the compiler's count: weight gradients would make it three forward passes."""
    config = type(tiny[0].config)(
        **{
            **tiny[0].config.__dict__, "vocab_size": 32, "hidden_size": 128, "intermediate_size": 1024,
            "num_hidden_layers": 2,
        }
    )  # fmt: skip
    model, rows, length = Model(config), 2, 96
    rollouts = Rollouts(
        jnp.zeros((rows, length), jnp.int32), jnp.full(rows, 8), jnp.full(rows, length - 8),
        jnp.zeros((rows, length - 8)), jnp.arange(rows), jnp.ones(rows, bool),
    )  # fmt: skip

    def operations(parameters):
        settings = GradientNormSettings(parameters, chunk=rows, max_samples=0)

        def norms(params):
            return per_sample_gradient_norms(model, params, rollouts, jnp.ones(rows, bool), settings, 1.0, length)

        return jax.jit(norms).lower(model.abstract_params).compile().cost_analysis()["flops"]

    assert 1.8 < operations("embed_tokens") / operations("lm_head") < 2.2


def test_norm_of_several_parameters_is_that_of_their_concatenation(tiny, make_rollouts):
    model, params, _ = tiny
    rollouts, wanted = make_rollouts(counts=[2]), np.array([False, True])

    def norm(pattern):
        settings = GradientNormSettings(pattern, chunk=1, max_samples=0, method="vmap")
        return measure(model, params, rollouts, wanted, settings, 1.0)[1]

    both = norm("embed_tokens|q_proj")
    np.testing.assert_allclose(both**2, norm("embed_tokens") ** 2 + norm("q_proj") ** 2, rtol=1e-4)


def test_a_pattern_that_matches_nothing_is_an_error(tiny):
    with pytest.raises(ValueError, match=r"gradient_norms.parameters = 'wte': found in no .* embed_tokens.kernel"):
        split_params(tiny[1], "wte")


@pytest.mark.parametrize(
    ("method", "pattern", "message"),
    [
        (
            "gram",
            "q_proj|embed",
            r"it takes only embed_tokens and lm_head, found layers.q_proj.bias, .* 'vmap'",
        ),
        ("gram", "wte", "gradient_norms.parameters = 'wte': found in no parameter's path"),
        ("fast", "embed_tokens", "gradient_norms.method = 'fast': must be one of gram, vmap"),
    ],
)
def test_what_a_method_cannot_measure_is_an_error(tiny, method, pattern, message):
    with pytest.raises(ValueError, match=message):
        measured_parts(tiny[0].abstract_params, GradientNormSettings(pattern, 1, 0, method))


def test_measured_samples_take_turns_over_prompts():
    segments = np.array([0, 0, 0, 1, 2, 2, 2, 2], np.int32)
    accepted = np.array([1, 1, 0, 0, 1, 0, 1, 1], bool)
    wanted = np.flatnonzero(wanted_samples(accepted, segments, max_samples=3))
    assert set(wanted) in ({0, 4, 1}, {0, 4, 6})
    np.testing.assert_array_equal(wanted_samples(accepted, segments, max_samples=0), accepted)
