"""A model from the section `model` of a config: compute dtype and attention as the devices have them."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gvm_jax.models.config import Qwen2Config
from gvm_jax.models.packed_attention import resolve_attention
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.sharding import batch_sharding
from gvm_jax.runtime import cpu


def make_model(
    settings: ConfigDict, network: Qwen2Config, mesh: Mesh, platform: str | None = None
) -> tuple[Model, str]:
    """The model that a run trains on a mesh, and one line for its log: dtype (with the reason), attention.

    Args:
      settings: `compute_dtype`, `remat` and `attention` of the config's section `model`.
      network: read from config.json.
      mesh: rows of activations are split over its batch axes.
      platform: "cpu", "gpu" or "tpu" to choose for; default that of the mesh's devices.

    Raises:
      ConfigError: the attention does not run on the platform or not in the dtype.
    """
    platform = platform or mesh.devices.flat[0].platform
    dtype, reason = resolve_compute_dtype(settings.compute_dtype, platform)
    attention = resolve_attention(settings.attention, dtype, platform)
    model = Model(network, dtype, settings.remat, activation_sharding=batch_sharding(mesh), attention=attention)
    parameters = sum(x.size for x in jax.tree.leaves(model.abstract_params))
    return model, f"{parameters / 1e6:.1f} M parameters, computed in {reason}; trained with attention {attention}"


def resolve_compute_dtype(name: str, platform: str) -> tuple[jnp.dtype, str]:
    """The dtype that `model.compute_dtype` stands for on a platform, and one line why.

    "auto" is bfloat16 on TPUs and GPUs, and the faster dtype on a CPU.
    """
    fast, why = (True, "") if platform in ("tpu", "gpu") else cpu.fast_bfloat16()
    if name == "auto":
        name = "bfloat16" if fast else "float32"
        return jnp.dtype(name), f"{name}: auto on {platform}" + (f", {why}" if why else "")
    slow = name == "bfloat16" and platform == "cpu" and jax.__version_info__ < (0, 12)
    remark = ", though float32 is much faster on a CPU before jax 0.12" if slow else ""
    return jnp.dtype(name), f"{name}: model.compute_dtype asks for it{remark}"
