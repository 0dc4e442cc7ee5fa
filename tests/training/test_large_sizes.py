"""More than 32,768 tokens in one pass, against float64 and against passes over one sample.

Releases of XLA's CPU compiler (jaxlib 0.10.2 among them) compute the rows of a product over 3 wrongly from the 32,769th
column on, in silence, where their sum is fused with it. These programs have to be right all the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gvm_jax.models.logprobs import response_logprobs
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.training.gradient_norms import GradientNormSettings, per_sample_gradient_norms, prediction_errors

SAMPLES, LENGTH, PROMPT = 331, 99, 33
TOKENS = SAMPLES * LENGTH
SHOWN = [0, 165, 329, 330]  # samples; the last holds the last token, the 32,769th


assert TOKENS == 32_769


@pytest.fixture(scope="module")
def rollouts(tiny):
    tokens = np.random.default_rng(1).integers(2, tiny[0].config.vocab_size, (SAMPLES, LENGTH)).astype(np.int32)
    return Rollouts(
        tokens=tokens,
        prompt_lengths=np.full(SAMPLES, PROMPT, np.int32),
        response_lengths=np.full(SAMPLES, LENGTH - PROMPT, np.int32),
        logprobs=np.zeros((SAMPLES, LENGTH - PROMPT), np.float32),
        group=np.arange(SAMPLES, dtype=np.int32),
        stopped=np.ones(SAMPLES, bool),
    )


@pytest.fixture(scope="module")
def one_by_one(tiny, rollouts):
    """(log-probability, its gradient) of a sample by itself, as a function of its number."""
    model, params, _ = tiny

    @jax.jit
    def of(tokens):
        def total(params):
            lengths = jnp.array([PROMPT]), jnp.array([LENGTH - PROMPT])
            return response_logprobs(model.bind(params), tokens[None], *lengths, LENGTH - PROMPT, 1.3, 66).sum()

        return jax.value_and_grad(total)(params)

    return lambda sample: jax.tree.map(lambda x: np.asarray(x, np.float64), of(rollouts.tokens[sample]))


def test_the_update_of_all_samples_is_the_sum_of_each(tiny, rollouts, one_by_one):
    model, params, _ = tiny
    weights = np.random.default_rng(2).normal(size=SAMPLES).astype(np.float32)

    @jax.jit
    def weighted(params, rollouts):
        def total(params):
            logprobs = response_logprobs(
                model.bind(params), rollouts.tokens, rollouts.prompt_lengths, rollouts.response_lengths,
                rollouts.max_response, 1.3, TOKENS,
            )  # fmt: skip
            return (logprobs.sum(1) * weights).sum(), logprobs.sum(1)

        return jax.grad(total, has_aux=True)(params)

    gradient, logprobs = weighted(params, rollouts)
    alone = [one_by_one(sample) for sample in range(SAMPLES)]
    np.testing.assert_allclose(logprobs, [value for value, _ in alone], rtol=1e-5)
    parts = [jax.tree.map(lambda g, w=w: w * g, each) for w, (_, each) in zip(weights, alone, strict=True)]
    expected = jax.tree.map(lambda *each: np.sum(each, 0), *parts)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * scale), gradient, expected)


@pytest.mark.parametrize("method", ["gram", "vmap"])
def test_the_norms_of_all_samples_are_those_of_each(method, tiny, rollouts, one_by_one):
    model, params, _ = tiny
    settings = GradientNormSettings("embed_tokens", SAMPLES, max_samples=0, method=method)

    @jax.jit
    def measure(params, rollouts):
        return per_sample_gradient_norms(model, params, rollouts, jnp.ones(SAMPLES, bool), settings, 1.3, TOKENS)

    norms = measure(params, rollouts)
    expected = [np.linalg.norm(one_by_one(sample)[1]["embed_tokens"]["kernel"]) for sample in SHOWN]
    np.testing.assert_allclose(norms[np.array(SHOWN)], expected, rtol=1e-4)


def test_the_errors_of_predictions_are_those_in_float64():
    rng = np.random.default_rng(3)
    head, states = rng.normal(size=(24, 3)), rng.normal(size=(SAMPLES, LENGTH, 3))
    targets = rng.integers(0, 24, (SAMPLES, LENGTH))
    arrays = head.astype(np.float32), states.astype(np.float32), targets, np.ones(targets.shape, bool)
    found = jax.jit(lambda *arrays: prediction_errors(*arrays, 0.7, products=True, vjp=True)[2:])(*arrays)
    logits = arrays[1].astype(np.float64) @ arrays[0].astype(np.float64).T / 0.7
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    errors = np.eye(24)[targets] - probabilities / probabilities.sum(-1, keepdims=True)
    missed, _, _, _, products, vjp = found
    np.testing.assert_allclose(missed, np.take_along_axis(errors, targets[..., None], -1)[..., 0], rtol=1e-4)
    np.testing.assert_allclose(products, errors @ errors.swapaxes(1, 2), atol=1e-5)
    np.testing.assert_allclose(vjp, errors @ head / 0.7, atol=1e-4)
