"""Where parameters and batches live: one table from logical axis names to mesh axes."""

import math
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gvm_jax.config import ConfigError
from gvm_jax.models.qwen2 import Model, Params
from gvm_jax.runtime.mesh import mesh_flags

# The parameters' logical axes. `embed` carries the ZeRO-3 style sharding of every matrix, the others the
# Megatron style one: each matrix is split once by either, and no activation is gathered twice.
MESH_AXIS = {
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
}
BATCH_AXES = ("data", "fsdp")  # mesh axes over which the rows of a batch are split


def split_sizes(model: Model, mesh_axis: str) -> dict[str, int]:
    """The logical axes that a mesh axis must divide, with what their sizes have in common.

    Not the KV heads: they are replicated where the tensor axis does not divide them (Qwen2.5 has 2 to 8).
    """
    sizes: dict[str, int] = {}

    def add(abstract, axes):
        for name, size in zip(axes, abstract.shape, strict=True):
            if MESH_AXIS[name] == mesh_axis and name != "kv_heads":
                sizes[name] = math.gcd(size, sizes.get(name, 0))

    jax.tree.map(add, model.abstract_params, model.axes)
    return sizes


def divisor(model: Model, mesh_axis: str) -> int:
    """The number that the size of a mesh axis must divide."""
    return math.gcd(*split_sizes(model, mesh_axis).values())


def check_axes(model: Model, shape: Mapping[str, int]) -> None:
    """Whether a mesh of this shape can split the parameters.

    Raises:
      ConfigError: an axis does not divide what it splits; the message has flags of a mesh that does.
    """
    devices = math.prod(shape.values())
    for axis, other in (("tensor", "fsdp"), ("fsdp", "tensor")):
        if divisor(model, axis) % shape[axis]:
            possible = math.gcd(divisor(model, axis), devices // shape[other])
            best = max(size for size in range(1, min(possible, shape[axis]) + 1) if possible % size == 0)
            shown = ", ".join(f"{name} {size}" for name, size in sorted(split_sizes(model, axis).items()))
            flags = mesh_flags(**{axis: best, other: shape[other]})
            raise ConfigError(f"mesh.{axis} = {shape[axis]}: must divide the model's sizes ({shown}); use {flags}")


def param_shardings(model: Model, mesh: Mesh) -> Params:
    """The sharding of every parameter, in the parameters' own tree.

    KV heads are replicated where the tensor axis does not divide them.

    Raises:
      ConfigError: as `check_axes`.
    """
    check_axes(model, mesh.shape)

    def sharding(abstract, axes):
        entries = []
        for name, size in zip(axes, abstract.shape, strict=True):
            axis = MESH_AXIS[name]
            entries.append(axis if axis and size % mesh.shape[axis] == 0 else None)
        return NamedSharding(mesh, PartitionSpec(*entries))

    return jax.tree.map(sharding, model.abstract_params, model.axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Rows split over the batch axes; `leading` unsplit axes come before the row axis."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, BATCH_AXES))
