"""Drawing tokens: the distribution, the cuts, and the corner cases of inverting a CDF in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gvm_jax.models.logprobs import select_logprobs
from gvm_jax.rollout.sampling import sample_tokens

KEYS = jax.random.split(jax.random.key(0), 20_000)
LOGITS = np.random.default_rng(0).normal(size=300).astype(np.float32) * 2


def draw(logits, temperature=1.0, **cuts):
    rows = jnp.broadcast_to(jnp.asarray(logits), (len(KEYS), len(logits)))
    return np.asarray(jax.jit(lambda x: sample_tokens(x, KEYS, jnp.float32(temperature), **cuts))(rows))


def softmax(x):
    e = np.exp(np.float64(x) - np.max(x))
    return e / e.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_tempered_softmax(temperature):
    expected = softmax(LOGITS / temperature)
    found = np.bincount(draw(LOGITS, temperature), minlength=300) / len(KEYS)
    error = np.sqrt(expected * (1 - expected) / len(KEYS))
    assert np.all(np.abs(found - expected) < 5 * error + 1e-4)


def test_temperature_zero_is_the_argmax():
    assert set(draw(LOGITS, 0.0)) == {int(np.argmax(LOGITS))}


def test_top_k_and_top_p_keep_the_likeliest():
    order = np.argsort(-LOGITS)
    assert set(draw(LOGITS, top_k=5)) == set(order[:5])
    p = softmax(LOGITS)[order]
    nucleus = int(np.argmax(np.cumsum(p) >= 0.6)) + 1  # the smallest set that reaches 0.6
    assert set(draw(LOGITS, top_p=0.6)) == set(order[:nucleus])
    found = np.mean(draw(LOGITS, top_k=5) == order[0])
    assert abs(found - p[0] / p[:5].sum()) < 0.02


def test_impossible_tokens_are_never_drawn():
    logits = np.full(1000, -np.inf, np.float32)
    logits[[3, 500, 999]] = [0.0, 1.0, -1.0]
    assert set(draw(logits)) == {3, 500, 999}
    one = np.full(257, -np.inf, np.float32)
    one[256] = 0.0
    assert set(draw(one)) == {256}


def test_logprobs_are_of_the_tempered_policy():
    tokens = np.arange(300)
    for temperature in (0.7, 1.0):
        found = select_logprobs(jnp.asarray(np.tile(LOGITS, (300, 1))), jnp.asarray(tokens), temperature)
        np.testing.assert_allclose(found, np.log(softmax(LOGITS / temperature)), atol=1e-5)
