"""Per-sample gradient norms against one plain jax.grad for each sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gvm_jax.models.logprobs import select_logprobs
from gvm_jax.models.qwen2 import Model, segment_attention
from gvm_jax.training.gradient_norms import (
    GradientNormSettings,
    per_sample_gradient_norms,
    split_params,
    wanted_samples,
)


@pytest.fixture(scope="module")
def tied(tiny):
    config = tiny[0].config
    model = Model(type(config)(**{**config.__dict__, "tie_word_embeddings": True}))
    return model, {k: v for k, v in tiny[1].items() if k != "lm_head"}


def reference_norm(model, params, rollouts, row, name):
    """A dense forward pass over the unpadded sequence, its whole gradient, and the norm of one leaf."""
    n, r = int(rollouts.prompt_lengths[row]), int(rollouts.response_lengths[row])
    tokens = rollouts.tokens[row : row + 1, : n + r]

    def log_likelihood(params):
        module = model.bind(params)
        hidden, _ = module(tokens, np.arange(n + r)[None], segment_attention(np.ones_like(tokens)))
        return select_logprobs(module.logits(hidden)[:, n - 1 : -1], tokens[:, n:], 0.8).sum()

    gradient = jax.grad(log_likelihood)(params)
    return float(jnp.linalg.norm(gradient[name]["kernel"]))


def measure(model, params, rollouts, rows, wanted, settings, temperature):
    def norms(params, *arrays):
        return per_sample_gradient_norms(model, params, *arrays, settings, temperature, logprob_chunk=4)

    return jax.jit(norms)(params, rollouts, rows, wanted)


@pytest.mark.parametrize("which", ["untied", "tied"])
def test_norms_equal_one_gradient_a_sample(tiny, tied, make_rollouts, which):
    model, params = tiny[:2] if which == "untied" else tied
    rollouts = make_rollouts(counts=[3, 2, 2])
    rows, wanted = np.array([4, 0, 6, 2, 1]), np.array([True, True, True, False, False])
    settings = GradientNormSettings("embed_tokens", chunk=2, max_samples=0)
    norms = measure(model, params, rollouts, rows, wanted, settings, 0.8)
    for i in range(3):
        expected = reference_norm(model, params, rollouts, rows[i], "embed_tokens")
        np.testing.assert_allclose(norms[i], expected, rtol=1e-4)
    np.testing.assert_array_equal(norms[3:], 0.0)


def test_norm_of_several_parameters_is_that_of_their_concatenation(tiny, make_rollouts):
    model, params, _ = tiny
    rollouts, row, wanted = make_rollouts(counts=[2]), np.array([1]), np.array([True])

    def norm(pattern):
        settings = GradientNormSettings(pattern, chunk=1, max_samples=0)
        return measure(model, params, rollouts, row, wanted, settings, 1.0)[0]

    both = norm("embed_tokens|lm_head")
    np.testing.assert_allclose(both**2, norm("embed_tokens") ** 2 + norm("lm_head") ** 2, rtol=1e-4)


def test_a_pattern_that_matches_nothing_is_an_error(tiny):
    with pytest.raises(ValueError, match=r"gradient_norms.parameters = 'wte': found in no .* embed_tokens.kernel"):
        split_params(tiny[1], "wte")


def test_measured_samples_take_turns_over_prompts():
    segments = np.array([0, 0, 0, 1, 2, 2, 2, 2], np.int32)
    accepted = np.array([1, 1, 0, 0, 1, 0, 1, 1], bool)
    rows, wanted = wanted_samples(accepted, segments, max_samples=3)
    assert set(np.asarray(rows[:2])) == {0, 4} and wanted.all() and rows[2] in (1, 6)
    rows, wanted = wanted_samples(accepted, segments, max_samples=0)
    assert rows.shape == (8,) and wanted.sum() == 5
    assert set(np.asarray(rows)[np.asarray(wanted)]) == {0, 1, 4, 6, 7}
    assert np.asarray(wanted)[:5].all()
