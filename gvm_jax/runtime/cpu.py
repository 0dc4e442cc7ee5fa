"""What XLA's CPU backend needs to be fast, and not to hang. On TPUs and GPUs nothing here changes a program.

- `compiler_options`: virtual devices may start independent collectives in different orders. Without it they deadlock.
- `fast_bfloat16`: bfloat16 is slow before jax 0.12 and without AMX. Then float32 is computed in.
- `tensordot`, `outer`: differentiation writes products that miss the fast bfloat16 kernels. These take a third of the
  time.
- `UnstackedLayers`: a layer's slice of a stack is copied before it is multiplied. A list of layers saves that copy of
  all weights in each decode step.

`rollout/kernels/partial_xla.py`, the attention of the rollouts on CPUs, is written for this backend too.
"""

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float


def compiler_options(mesh: jax.sharding.Mesh) -> dict[str, bool]:
    """Options of `jax.jit` for programs over this mesh.

    The backend may start collectives that do not depend on each other in another order on each of its virtual devices,
    which then wait for one another for ever. Its sequential schedule keeps one order.
    """
    several_cpus = mesh.devices.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return {"xla_cpu_enable_concurrency_optimized_scheduler": False} if several_cpus else {}


def fast_bfloat16() -> tuple[bool, str]:
    """Whether bfloat16 is faster than float32 on this CPU, and why: with AMX, which XLA uses from jax 0.12 on."""
    if jax.__version_info__ < (0, 12):
        return False, f"jax {jax.__version__} < 0.12 is slower in bfloat16"
    return (True, "with AMX") if _has_amx() else (False, "without AMX, which is slower in bfloat16")


def _has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware (Intel AMX); Linux only, False elsewhere."""
    try:
        return "amx_bf16" in pathlib.Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


def tensordot(x: Float[Array, "..."], w: Float[Array, "..."], axes: int) -> Float[Array, "..."]:
    """`jnp.tensordot(x, w, axes)`: the last axes of x contracted with the first of w, in their dtype.

    As one matrix product, since the gradient of a contraction over several axes is 3 times slower, and with a backward
    pass of its own.
    """
    inputs = math.prod(w.shape[:axes])
    return _matmul(x.reshape(-1, inputs), w.reshape(inputs, -1)).reshape(*x.shape[:-axes], *w.shape[axes:])


@jax.custom_vjp
def _matmul(x: Float[Array, "T K"], w: Float[Array, "K N"]) -> Float[Array, "T N"]:
    return x @ w


def _backward(operands, cotangents):
    # The backend multiplies bfloat16 in hardware where the left matrix is contracted over its last axis and, if the
    # right one is too, the result is float32. Differentiation's products are neither. On other backends float32 would
    # only double the bytes of the sums over devices.
    return jax.lax.platform_dependent(*operands, cotangents, cpu=_float32_backward, default=_own_backward)


def _float32_backward(x, w, cotangents):
    of_x = jax.lax.dot_general(cotangents, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return of_x.astype(x.dtype), outer(x, cotangents).astype(w.dtype)


def _own_backward(x, w, cotangents):
    return cotangents @ w.T, x.T @ cotangents


_matmul.defvjp(lambda x, w: (x @ w, (x, w)), _backward)


def outer(x: Float[Array, "T K"], y: Float[Array, "T N"]) -> Float[Array, "K N"]:
    """xᵀ · y, the sum of the rows' outer products, in float32."""
    # On a CPU transposed in memory too, where the compiler would rather read the columns of x.
    transposed = jax.lax.platform_dependent(
        x, cpu=lambda x: with_layout_constraint(x.T, Layout(major_to_minor=(0, 1))), default=jnp.transpose
    )
    return jnp.matmul(transposed, y, preferred_element_type=jnp.float32)


class UnstackedLayers:
    """Mixin of a network that keeps its layers apart, as a list, instead of as a stack that `lax.scan` slices."""

    def make_layers(self, make_layer, depth: int) -> nnx.List:
        return nnx.List(make_layer(()) for _ in range(depth))

    def run_layers(self, x: Float[Array, "B L D"], angles, attention, cache: Any):
        for i, layer in enumerate(self.layers):
            x, cache = layer(x, angles, jnp.int32(i), attention, cache)
        return x, cache


def unstack(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a network with `UnstackedLayers`: a dict of layers by number instead of one stack."""
    layers = params["layers"]
    depth = jax.tree.leaves(layers)[0].shape[0]
    return {**params, "layers": {i: jax.tree.map(lambda stack: stack[i], layers) for i in range(depth)}}  # noqa: B023
