"""Sketched gradients against whole ones, and a pool that goes on where it was stopped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from gvm_jax.config import ConfigError
from gvm_jax.lab.frozen_step import FrozenPolicy
from gvm_jax.lab.pool import CountSketch, PoolSettings, collect, num_coordinates, sketched_gradients
from gvm_jax.models.logprobs import select_logprobs
from gvm_jax.models.packed_attention import segment_attention
from gvm_jax.rollout.rollouts import Samples
from gvm_jax.training.trainer import Trainer

WHOLE = PoolSettings(prompts=2, samples=2, sketch=0, chunk=2)


@pytest.fixture(scope="module")
def rollouts():
    """Two samples of each of two prompts, of different lengths."""
    random, samples = np.random.default_rng(0), Samples(5)
    prompts = [random.integers(2, 96, length).astype(np.int32) for length in (3, 4)]
    for row, length in zip(samples.add(4), (2, 5, 1, 4), strict=True):
        samples.append(np.array([row]), random.integers(2, 96, (1, length)), np.zeros((1, length), np.float32))
    return samples.rollouts(prompts, np.repeat([0, 1], 2), 4)


def direct_gradient(model, params, rollouts, row):
    """One gradient by jax.grad of a dense forward pass over the unpadded row."""
    n, r = int(rollouts.prompt_lengths[row]), int(rollouts.response_lengths[row])
    tokens = rollouts.tokens[row : row + 1, : n + r]

    def log_likelihood(params):
        hidden, _ = model.bind(params)(tokens, np.arange(n + r)[None], segment_attention(np.ones_like(tokens)))
        logits = model.bind(params).logits(hidden)[:, n - 1 : -1]
        return select_logprobs(logits, tokens[:, n:], 0.8).sum()

    return jax.grad(log_likelihood)(params)


def sketched(tiny, rollouts, settings, sketch=None):
    model, params, _ = tiny
    sketch = sketch or CountSketch.random(num_coordinates(params, settings.parameters), settings.sketch, 0)
    return sketched_gradients(model, params, sketch, rollouts, settings, 0.8, logprob_chunk=4)


def test_the_gram_matrix_is_that_of_the_gradients(tiny, rollouts):
    gradients = [direct_gradient(*tiny[:2], rollouts, row) for row in range(4)]
    flat = np.stack([np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(g)]) for g in gradients]).astype(float)
    squared_norms, features = (np.asarray(x, np.float64) for x in sketched(tiny, rollouts, WHOLE))
    np.testing.assert_allclose(features @ features.T, flat @ flat.T, rtol=1e-4, atol=1e-5 * squared_norms.max())
    np.testing.assert_allclose(squared_norms, np.square(flat).sum(1), rtol=1e-4)


def test_chosen_parameters_alone_are_measured(tiny, rollouts):
    settings = PoolSettings(prompts=2, samples=2, sketch=0, parameters="lm_head")
    _, features = sketched(tiny, rollouts, settings)
    expected = direct_gradient(*tiny[:2], rollouts, 1)["lm_head"]["kernel"]
    np.testing.assert_allclose(features[1], np.ravel(expected), rtol=1e-3, atol=1e-5)
    with pytest.raises(ConfigError, match=r"--parameters='wte': found in no parameter's path; .*lm_head.kernel"):
        num_coordinates(tiny[1], "wte")


def test_a_sketch_of_the_gradients_is_a_linear_map_of_them(tiny, rollouts):
    sketch = CountSketch.random(num_coordinates(tiny[1], "."), 64, seed=1)
    _, features = sketched(tiny, rollouts, WHOLE)
    squared_norms, short = sketched(tiny, rollouts, WHOLE, sketch)
    assert short.shape == (4, 64)
    np.testing.assert_allclose(short, jax.vmap(sketch)(features), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(squared_norms, np.square(features).sum(1), rtol=1e-4)


def test_sketched_inner_products_are_unbiased_and_as_close_as_promised():
    random, k, seeds = np.random.default_rng(0), 50, 3000
    x, y = random.normal(size=(2, 403)) * np.geomspace(1, 20, 403)
    pairs = [[CountSketch.random(403, k, seed)(v.astype(np.float32)) for v in (x, y)] for seed in range(seeds)]
    products = np.array([np.dot(a, b) for a, b in pairs], np.float64)
    assert abs(products.mean() - x @ y) < 4 * products.std() / np.sqrt(seeds)
    promised = (x @ x * (y @ y) + (x @ y) ** 2) / k
    assert 0.5 * promised < products.var() < 1.1 * promised


def test_a_sketch_that_would_not_be_shorter_is_the_gradient_itself():
    x = jnp.arange(5.0)
    for k in (0, 5, 9):
        np.testing.assert_array_equal(CountSketch.random(5, k, 0)(x), x)


@pytest.fixture(scope="module")
def run():
    config = quickstart.get_config()
    config.prompts_per_step, config.rollouts_per_step, config.rollout.slots = 4, 16, 16
    config.evaluation.path = ""
    with Trainer(config) as run:
        yield run


def test_a_pool_goes_on_where_it_was_stopped(run, tmp_path, monkeypatch):
    policy, lines = FrozenPolicy(run), []
    settings = PoolSettings(prompts=6, samples=4, sketch=32, block=2)

    def get(settings):
        return collect(policy, settings, tmp_path / "pool", lines.append)

    pool = get(settings)
    files = sorted((tmp_path / "pool").glob("*.npz"))
    assert len(files) == 3 and len(lines) == 3
    assert pool.rewards.shape == (6, 4) and pool.sketches.shape == (6, 4, 32)
    assert set(np.unique(pool.rewards)) == {0.0, 1.0} and pool.norms.min() > 0
    # The studied parameters include the measured ones.
    assert (pool.squared_norms >= 0.999 * pool.norms**2).all()

    files[1].unlink()
    kept = [file.stat().st_mtime_ns for file in (files[0], files[2])]
    again = get(settings)
    assert [file.stat().st_mtime_ns for file in (files[0], files[2])] == kept
    jax.tree.map(np.testing.assert_array_equal, again, pool)

    monkeypatch.setitem(run.config.rollout, "slots", 8)  # it changes no sample
    monkeypatch.setitem(run.config.data, "path", "elsewhere")  # with the same prompts
    jax.tree.map(np.testing.assert_array_equal, get(settings), pool)
    monkeypatch.setitem(run.config.rollout, "top_p", 0.5)
    with pytest.raises(ConfigError, match=r"(?s)pool.json: this pool is of something else.*rollout.top_p: 1.0 -> 0.5$"):
        get(settings)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"(?s)pool.json: this pool is of something else.*pool.samples: 4 -> 5"):
        get(PoolSettings(prompts=6, samples=5, sketch=32, block=2))
    with pytest.raises(ConfigError, match=r"--prompts=1000: data.path = .builtin:arithmetic. has only 256 prompts"):
        collect(policy, PoolSettings(prompts=1000, samples=1), tmp_path / "other", print)


def test_the_pool_begins_with_the_samples_that_the_run_would_draw(run, tmp_path):
    state = run.initial_state()
    _, graded = run.collect(state)
    settings = PoolSettings(prompts=4, samples=int(state.counts.max()), sketch=32, block=4)
    pool = collect(FrozenPolicy(run), settings, tmp_path / "pool", print)
    for i in range(4):
        rows = graded.rollouts.group == i
        np.testing.assert_array_equal(pool.response_lengths[i, : rows.sum()], graded.rollouts.response_lengths[rows])
        np.testing.assert_array_equal(pool.rewards[i, : rows.sum()], graded.scores[rows])
