"""Attention within the sequences of packed rows, against one query, one head and one sequence at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gvm_jax.config import ConfigError
from gvm_jax.models import packed_attention
from gvm_jax.models.packed_attention import resolve_attention, segment_attention


def problem(rows=2, length=150, heads=4, kv_heads=2, dim=16, seed=0):
    """Random queries, keys, values, the cotangents of a loss, and segments of unequal lengths."""
    random = np.random.default_rng(seed)
    q, k, v, cotangents = (random.normal(size=(rows, length, h, dim)) for h in (heads, kv_heads, kv_heads, heads))
    segments = np.sort(random.integers(0, 4, (rows, length)), axis=1)
    return q, k, v, cotangents, segments


def by_brute_force(q, k, v, segments):
    """In float64."""
    mixed, group = np.zeros(q.shape), q.shape[2] // k.shape[2]
    for row, place, head in np.ndindex(*q.shape[:3]):
        seen = np.flatnonzero(segments[row, : place + 1] == segments[row, place])
        scores = k[row, seen, head // group] @ q[row, place, head] / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        mixed[row, place, head] = weights @ v[row, seen, head // group] / weights.sum()
    return mixed


def of(implementation, q, k, v, cotangents, segments, dtype=jnp.float32, rows=None):
    """Values, and the gradients of their sum weighed with the cotangents with respect to q, k and v; in float32."""

    def loss(q, k, v):
        mixed, _ = segment_attention(segments, implementation, rows)(q, k, v, None, None)
        return (mixed * cotangents).sum(), mixed

    inputs = (jnp.asarray(x, dtype) for x in (q, k, v))
    gradients, mixed = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*inputs)
    return [np.asarray(x, np.float32) for x in (mixed, *gradients)]


@pytest.fixture
def interpreted(monkeypatch):
    """Splash attention runs without a TPU, slowly."""
    monkeypatch.setattr(packed_attention, "_splash", functools.partial(packed_attention._splash, interpret=True))


@pytest.mark.parametrize("implementation", ["xla", "splash"])
def test_values_are_those_of_one_query_at_a_time(implementation, interpreted):
    q, k, v, cotangents, segments = problem()
    mixed, *_ = of(implementation, q, k, v, cotangents, segments)
    np.testing.assert_allclose(mixed, by_brute_force(q, k, v, segments), atol=2e-5)


def test_gradients_of_splash_are_those_of_xla(interpreted):
    given = problem(seed=1)
    for found, expected in zip(of("splash", *given), of("xla", *given), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("sizes", "heads", "kv_heads"),
    [
        ({"data": 2, "tensor": 2}, 4, 2),
        ({"fsdp": 2, "tensor": 2}, 4, 1),  # each query head gets a copy of the keys' only head
        ({"tensor": 4}, 6, 2),  # 4 devices divide neither
        ({"data": 4}, 4, 2),  # nor the 2 rows
    ],
)
def test_splash_runs_on_each_device_of_a_mesh(sizes, heads, kv_heads, test_mesh, interpreted):
    given = problem(length=64, heads=heads, kv_heads=kv_heads)
    rows = NamedSharding(test_mesh(**sizes), PartitionSpec(("data", "fsdp")))
    for found, expected in zip(of("splash", *given, rows=rows), of("xla", *given), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tpu_mesh", "heads", "kv_heads", "dim"),
    [("v5e:2x4", 14, 2, 64), ("v5p:2x2x2", 14, 2, 64), ("v6e:2x4", 12, 1, 128)],
    indirect=["tpu_mesh"],
)
def test_splash_and_its_gradient_compile_for_tpus(heads, kv_heads, dim, tpu_mesh, without_cache):
    """A row of 1,300 tokens holds 6 GB of scores of 12 heads in float32: none of them is in memory."""
    rows = NamedSharding(tpu_mesh, PartitionSpec(("data", "fsdp")))

    def loss(q, k, v, segments):
        return segment_attention(segments, "splash", rows)(q, k, v, None, None)[0].astype(jnp.float32).sum()

    shapes = [(16, 1300, h, dim) for h in (heads, kv_heads, kv_heads)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=rows) for shape in shapes]
    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays, jax.ShapeDtypeStruct((16, 1300), jnp.int32)).compile()
    assert "splash" in program.as_text()
    assert program.memory_analysis().temp_size_in_bytes < 2e8


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU: GVM_JAX_TEST_PLATFORM=cuda")
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "length"), [(14, 2, 64, 1300), (12, 2, 128, 515)])
def test_cudnn_is_xla_in_bfloat16(heads, kv_heads, dim, length):
    given = problem(length=length, heads=heads, kv_heads=kv_heads, dim=dim)
    exact, rounded = of("xla", *given), of("xla", *given, jnp.bfloat16)
    for found, other, expected in zip(of("cudnn", *given, jnp.bfloat16), rounded, exact, strict=True):
        error, usual = (np.linalg.norm(x - expected) / np.linalg.norm(expected) for x in (found, other))
        assert error < max(1.5 * usual, 5e-3)


@pytest.mark.parametrize(
    ("name", "dtype", "platform", "message"),
    [
        ("splash", jnp.bfloat16, "gpu", r"model.attention = 'splash': runs on TPUs, and this is a GPU; use 'xla'"),
        ("cudnn", jnp.bfloat16, "cpu", r"model.attention = 'cudnn': runs on GPUs, and this is a CPU"),
        ("cudnn", jnp.float32, "gpu", r"takes bfloat16, and the model computes in float32; set model.compute_dtype"),
    ],
)
def test_a_kernel_that_does_not_run_here_is_refused(name, dtype, platform, message):
    with pytest.raises(ConfigError, match=message):
        resolve_attention(name, dtype, platform)
