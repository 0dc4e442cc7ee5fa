"""Ranges of keys with their attention by brute force, and layers compiled for TPUs that are not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec


@pytest.fixture
def compile_layers(tpu_mesh, without_cache):
    """Compiles `step(q, cache, layer, *others)` for TPUs in a scan over two layers that carries the cache.

    Returns the program's text after checking that the cache is updated in place, not copied.
    """

    def compile_layers(step, q, cache, *others):
        def program(q, cache, *others):
            def layer(cache, index):
                return cache.at[index, 0].set(1), step(q, cache, index, *others)

            return jax.lax.scan(layer, cache, jnp.arange(2))

        heads = NamedSharding(tpu_mesh, PartitionSpec(None, None, "tensor"))
        whole = NamedSharding(tpu_mesh, PartitionSpec())
        shapes = [jax.ShapeDtypeStruct(*x, sharding=heads) for x in (q, cache)]
        shapes += [jax.ShapeDtypeStruct(*x, sharding=whole) for x in others]
        program = jax.jit(program, donate_argnums=1).lower(*shapes).compile()
        memory = program.memory_analysis()
        cache_bytes = np.prod(cache[0]) * jnp.dtype(cache[1]).itemsize // tpu_mesh.shape["tensor"]
        assert memory.alias_size_in_bytes >= cache_bytes
        assert memory.temp_size_in_bytes < cache_bytes / 4
        return program.as_text()

    return compile_layers


def attend_by_brute_force(q, cache, tables, begin, end, first_page):
    """One query, one head, one list of keys at a time, in float64."""
    q, cache = np.asarray(q, np.float64), np.asarray(cache, np.float64)
    n, t, heads, dim = q.shape
    page, kv_heads = cache.shape[1], cache.shape[2] // 2
    values, max_score, sum_exp = np.zeros(q.shape), np.full((n, t, heads), -np.inf), np.zeros((n, t, heads))
    for i in range(n):
        at = np.arange(begin[i], end[i])
        if at.size == 0:
            continue
        kv = cache[first_page + tables[i, at // page], at % page, :, :dim]
        for h in range(heads):
            k, v = (kv[:, 2 * (h // (heads // kv_heads)) + j] for j in (0, 1))
            for row in range(t):
                scores = k @ q[i, row, h] / np.sqrt(dim)
                max_score[i, row, h] = scores.max()
                weights = np.exp(scores - scores.max())
                sum_exp[i, row, h] = weights.sum()
                values[i, row, h] = weights @ v
    return values, max_score, sum_exp


def make_problem(
    heads, kv_heads, dim, page, t, begin, end, held_dim=128, dtype=jnp.float32, layers=2, num_pages=80, seed=0
):
    """Random queries, and a cache that is NaN wherever no range of the last layer has a key."""
    random = np.random.default_rng(seed)
    begin, end = np.array(begin, np.int32), np.array(end, np.int32)
    n, width = len(begin), -(-max(end) // page)
    tables = np.full((n, width), 10**6, np.int32)  # outside of the cache: to read one is an error
    cache = np.full((layers * num_pages, page, 2 * kv_heads, held_dim), np.nan)
    first_page = (layers - 1) * num_pages
    for i in range(n):
        used = np.arange(begin[i] // page, -(-end[i] // page)) if end[i] > begin[i] else []
        tables[i, used] = random.integers(1, num_pages, len(used))
        at = np.arange(begin[i], end[i])
        cache[first_page + tables[i, at // page], at % page] = random.normal(size=(len(at), 2 * kv_heads, held_dim))
    q = jnp.asarray(random.normal(size=(n, t, heads, dim)), dtype)
    return q, jnp.asarray(cache, dtype), tables, begin, end, np.int32(first_page)


@pytest.fixture
def partial_problem():
    """`make_problem`."""
    return make_problem


@pytest.fixture
def brute_force():
    """`attend_by_brute_force`."""
    return attend_by_brute_force


@pytest.fixture
def check_partial():
    """Compares a `partial_attention` with brute force on a problem."""

    def check(partial_attention, args, tolerance=2e-5, interpret=None, mesh=None):
        interpret = jax.default_backend() == "cpu" if interpret is None else interpret
        got = jax.jit(lambda *args: partial_attention(*args, interpret=interpret, mesh=mesh))(*args)
        for name, actual, expected in zip(
            ("values", "max_score", "sum_exp"), got, attend_by_brute_force(*args), strict=True
        ):
            assert actual.dtype == jnp.float32
            np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * 20, err_msg=name)

    return check
