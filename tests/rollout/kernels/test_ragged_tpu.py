import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ref_ragged_paged_attention

from gvm_jax.rollout.kernels.ragged_tpu import cache_head_dim, ragged_attention


def brute_force(q, cache, tables, positions, first_page):
    """One token and one head at a time, in float64; NaN where there is no token."""
    q, cache = np.asarray(q, np.float64), np.asarray(cache, np.float64)
    heads, dim = q.shape[2:]
    page, group = cache.shape[1], heads // (cache.shape[2] // 2)
    result = np.full(q.shape, np.nan)
    for s, c in np.argwhere(positions >= 0):
        at = np.arange(positions[s, c] + 1)
        kv = cache[first_page + tables[s, at // page], at % page, :, :dim]
        for h in range(heads):
            scores = kv[:, 2 * (h // group)] @ q[s, c, h] / np.sqrt(dim)
            weights = np.exp(scores - scores.max())
            result[s, c, h] = weights @ kv[:, 2 * (h // group) + 1] / weights.sum()
    return result


def reference(q, kv_pages, kv_lens, page_indices, cu_q_lens, num_seqs, *, sm_scale, **block_sizes):
    """JAX's reference under the kernel's conditions: no empty sequence, and NaN where the kernel writes nothing."""
    count = int(num_seqs[0])
    lengths = np.diff(cu_q_lens[: count + 1])
    assert count > 0 and (lengths > 0).all() and (lengths <= kv_lens[:count]).all()
    assert (page_indices >= 0).all() and (page_indices < kv_pages.shape[0]).all()
    assert 0 < block_sizes["num_kv_pages_per_block"] <= page_indices.shape[1]
    result = ref_ragged_paged_attention(q, kv_pages, kv_lens, page_indices, cu_q_lens, num_seqs, sm_scale=sm_scale)
    return jnp.full(q.shape, jnp.nan, q.dtype).at[: result.shape[0]].set(result)


@pytest.mark.parametrize(
    "positions",
    [
        [[4], [-1], [0], [63], [-1], [17]],  # decode with idle slots
        [[-1], [-1]],  # nothing to do
        [[0, 1, 2, 3, 4], [-1] * 5, [20, 21, -1, -1, -1], [59, 60, 61, 62, 63], [7, -1, -1, -1, -1]],  # a prefill chunk
    ],
)
@pytest.mark.parametrize("heads, kv_heads, dim", [(14, 2, 64), (4, 4, 128)])
def test_agrees_with_brute_force(positions, heads, kv_heads, dim):
    random = np.random.default_rng(0)
    positions = np.array(positions, np.int32)
    rows, first_page, page = len(positions), 20, 16
    cache = jnp.asarray(random.normal(size=(40, page, 2 * kv_heads, cache_head_dim(dim))), jnp.float32)
    tables = random.integers(0, 20, (rows, 64 // page)).astype(np.int32)
    q = jnp.asarray(random.normal(size=(*positions.shape, heads, dim)), jnp.float32)

    def kernel(*args, **options):
        assert args[5] == max(1, (positions[:, 0] >= 0).sum())  # idle rows cost nothing
        return reference(*args, **options)

    result = ragged_attention(q, cache, tables, positions, first_page, kernel=kernel)
    expected = brute_force(q, cache, tables, positions, first_page)
    assert result.shape == q.shape and result.dtype == q.dtype
    np.testing.assert_allclose(result, np.nan_to_num(expected), rtol=1e-4, atol=1e-4)


def test_the_caches_head_dim_fills_whole_vectors():
    assert [cache_head_dim(dim) for dim in (16, 64, 128, 160)] == [128, 128, 128, 256]


def test_rejects_a_cache_with_the_models_head_dim():
    with pytest.raises(ValueError, match=r"head dimension is 64.*cache_head_dim\(64\)"):
        ragged_attention(*map(jnp.zeros, [(1, 1, 2, 64), (4, 16, 2, 64), (1, 2), (1, 1), ()]))


@pytest.mark.parametrize(
    "tpu_mesh, heads, kv_heads, dim, page, rows, chunk, dtype",
    [
        ("v5e:2x4", 14, 2, 64, 16, 256, 1, jnp.bfloat16),
        ("v5p:2x2x2", 14, 2, 64, 64, 8, 128, jnp.bfloat16),
        ("v6e:2x4", 28, 4, 128, 128, 256, 1, jnp.bfloat16),
        ("v5e:2x4", 28, 4, 128, 128, 8, 128, jnp.float32),
    ],
    indirect=["tpu_mesh"],
)
def test_compiles_for_tpu(compile_layers, tpu_mesh, heads, kv_heads, dim, page, rows, chunk, dtype):
    def step(q, cache, layer, tables, positions):
        return ragged_attention(q, cache, tables, positions, layer * 8192, mesh=tpu_mesh)

    cache = ((2 * 8192, page, 2 * kv_heads, cache_head_dim(dim)), dtype)
    integers = [(shape, jnp.int32) for shape in ((rows, 2048 // page), (rows, chunk))]
    text = compile_layers(step, ((rows, chunk, heads, dim), dtype), cache, *integers)
    assert 'custom_call_target="tpu_custom_call"' in text
