import contextlib

import jax
import jax.numpy as jnp
import pytest

from gvm_jax.rollout.kernels.partial_gpu import partial_attention


@pytest.mark.parametrize(
    "heads, kv_heads, dim, page, t, dtype, tolerance",
    [
        (14, 2, 64, 16, 1, jnp.float32, 2e-5),
        (14, 2, 64, 128, 8, jnp.bfloat16, 1e-2),
        (4, 4, 128, 1, 3, jnp.float32, 2e-5),
    ],
)
def test_agrees_with_brute_force(check_partial, partial_problem, heads, kv_heads, dim, page, t, dtype, tolerance):
    begin, end = [0, 7, 37, 20, 64], [1, 7, 200, 3, 128]
    args = partial_problem(heads, kv_heads, dim, page, t, begin, end, held_dim=dim, dtype=dtype, num_pages=300)
    check_partial(partial_attention, args, tolerance)


def test_heads_split_over_devices(check_partial, partial_problem, test_mesh):
    args = partial_problem(4, 2, 16, 16, 2, [0, 30], [50, 30], held_dim=16)
    check_partial(partial_attention, args, mesh=test_mesh(tensor=2))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("heads, kv_heads, dim, t", [(14, 2, 64, 8), (28, 4, 128, 1)])
def test_lowers_to_triton(partial_problem, heads, kv_heads, dim, t, dtype):
    args = partial_problem(heads, kv_heads, dim, 16, t, [0, 30], [50, 30], held_dim=dim, dtype=dtype)
    args = [jnp.asarray(x) for x in args]
    gpu = contextlib.nullcontext()
    if jax.__version_info__ >= (0, 12):  # it asks which GPU
        device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "cuda")
        gpu = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device))
    with gpu:
        text = jax.jit(partial_attention).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" in text
