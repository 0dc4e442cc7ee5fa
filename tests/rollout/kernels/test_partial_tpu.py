import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from gvm_jax.rollout.kernels.partial_tpu import partial_attention


@pytest.fixture
def check(check_partial, partial_problem):
    """Compares the kernel with brute force; takes what `partial_problem` and `check_partial` take."""

    def check(*sizes, dtype=jnp.float32, num_pages=80, seed=0, **options):
        args = partial_problem(*sizes, held_dim=128, dtype=dtype, num_pages=num_pages, seed=seed)
        check_partial(partial_attention, args, **options)

    return check


@pytest.mark.parametrize("t", [1, 8])
@pytest.mark.parametrize("heads, kv_heads, dim, page", [(14, 2, 64, 16), (4, 4, 128, 64), (6, 1, 16, 512)])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2e-5), (jnp.bfloat16, 1e-2)])
def test_agrees_with_brute_force(check, heads, kv_heads, dim, page, t, dtype, tolerance):
    begin, end = [0, 0, 37, 255, 3], [1, 700, 38, 513, 130]
    check(heads, kv_heads, dim, page, t, begin, end, dtype=dtype, tolerance=tolerance)


@pytest.mark.parametrize(
    "begin, end",
    [
        ([5, 0, 20, 7, 0, 64], [5, 0, 300, 3, 0, 64]),  # empty ranges before, between and after
        ([9, 40, 0], [9, 33, 0]),  # nothing at all
        ([0, 16, 256, 512], [256, 32, 512, 768]),  # whole pages, whole blocks
    ],
)
def test_empty_and_aligned_ranges(check, begin, end):
    check(2, 1, 32, 16, 3, begin, end)


@pytest.mark.parametrize("seed", range(4))
def test_random_ranges(check, seed):
    random = np.random.default_rng(seed)
    begin = random.integers(0, 400, 7)
    end = np.minimum(begin + random.integers(-50, 500, 7), 600)
    page = int(random.choice([1, 4, 16, 128]))
    check(4, 2, 64, page, int(random.integers(1, 5)), begin, end, num_pages=640, seed=seed)


def test_on_a_simulated_tpu(check):
    """The simulator's copies end only when they are waited for, and a read outside of the cache is an error."""
    with pltpu.force_tpu_interpret_mode():
        begin, end = [0, 7, 300, 37, 0], [0, 700, 300, 270, 16]
        check(4, 2, 64, 16, 2, begin, end, dtype=jnp.bfloat16, tolerance=1e-2, interpret=False)


@pytest.mark.parametrize("kv_heads", [4, 1])  # the latter cannot be split: every device has the whole
def test_heads_split_over_devices(check, test_mesh, kv_heads):
    check(8, kv_heads, 64, 16, 2, [0, 30, 9], [50, 30, 300], mesh=test_mesh(data=2, tensor=2))


def test_inside_of_loops(partial_problem, brute_force):
    *args, first_page = partial_problem(4, 2, 64, 16, 1, [3, 10, 0], [90, 10, 300])

    @jax.jit
    def twice(steps, *args):
        def layer(_, first_page):
            return None, partial_attention(*args, first_page, interpret=True)

        def step(carry):
            return carry[0] + 1, jax.lax.scan(layer, None, jnp.array([first_page]))[1]

        parts = jax.tree.map(lambda x: jnp.zeros((1, *x.shape)), jax.eval_shape(lambda: layer(None, first_page)[1]))
        return jax.lax.while_loop(lambda carry: carry[0] < steps, step, (0, parts))[1]

    for actual, expected in zip(twice(2, *args), brute_force(*args, first_page), strict=True):
        np.testing.assert_allclose(actual[0], expected, rtol=1e-4, atol=1e-4)


def test_rejects_a_cache_with_the_models_head_dim():
    with pytest.raises(ValueError, match=r"head dimension is 64.*cache_head_dim\(64\)"):
        partial_attention(*map(jnp.zeros, [(1, 1, 2, 64), (4, 16, 2, 64), (1, 2), (1,), (1,), ()]))


def test_rejects_kv_heads_that_do_not_divide_the_heads():
    with pytest.raises(ValueError, match=r"14 query heads .* 8 combined heads"):
        partial_attention(*map(jnp.zeros, [(1, 1, 14, 64), (4, 16, 8, 128), (1, 2), (1,), (1,), ()]))


@pytest.mark.parametrize(
    "tpu_mesh, heads, kv_heads, dim, page, n, t, dtype",
    [
        ("v5e:2x4", 14, 2, 64, 16, 256, 1, jnp.bfloat16),
        ("v5p:2x2x2", 14, 2, 64, 64, 32, 8, jnp.bfloat16),
        ("v6e:2x4", 28, 4, 128, 128, 256, 1, jnp.bfloat16),
        ("v5e:2x4", 28, 4, 128, 64, 32, 8, jnp.float32),
    ],
    indirect=["tpu_mesh"],
)
def test_compiles_for_tpu(compile_layers, tpu_mesh, heads, kv_heads, dim, page, n, t, dtype):
    def step(q, cache, layer, tables, begin, end):
        return partial_attention(q, cache, tables, begin, end, layer * 8192, mesh=tpu_mesh)

    cache = ((2 * 8192, page, 2 * kv_heads, 128), dtype)
    integers = [(shape, jnp.int32) for shape in ((n, 4096 // page), (n,), (n,))]
    text = compile_layers(step, ((n, t, heads, dim), dtype), cache, *integers)
    assert 'custom_call_target="tpu_custom_call"' in text
