"""Where parameters and batches live: one table from logical axis names to mesh axes."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gvm_jax.config import ConfigError
from gvm_jax.models.qwen2 import Model, Params

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


def param_shardings(model: Model, mesh: Mesh) -> Params:
    """The sharding of every parameter, in the parameters' own tree.

    KV heads are replicated where the tensor axis does not divide them (Qwen2.5 has 2 to 8); any other axis that its
    mesh axis does not divide is a ConfigError.
    """

    def sharding(path, abstract, axes):
        entries = []
        for name, size in zip(axes, abstract.shape, strict=True):
            mesh_axis = MESH_AXIS[name]
            if mesh_axis and size % mesh.shape[mesh_axis]:
                if name != "kv_heads":
                    raise ConfigError(
                        f"mesh.{mesh_axis}={mesh.shape[mesh_axis]} does not divide the {name} axis ({size}) of "
                        f"{jax.tree_util.keystr(path)}; choose a divisor of {size}"
                    )
                mesh_axis = None
            entries.append(mesh_axis)
        return NamedSharding(mesh, PartitionSpec(*entries))

    return jax.tree_util.tree_map_with_path(sharding, model.abstract_params, model.axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Rows split over the batch axes; `leading` unsplit axes come before the row axis."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, BATCH_AXES))
