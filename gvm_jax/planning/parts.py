"""A run's programs and arrays for devices that are not there, from a config and the model's config.json alone."""

import dataclasses
import math

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gvm_jax.models.assemble import resolve_compute_dtype
from gvm_jax.models.config import Qwen2Config, model_folder
from gvm_jax.models.packed_attention import resolve_attention
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.sharding import batch_sharding, divisor
from gvm_jax.planning.chips import Topology
from gvm_jax.rollout import paged_attention
from gvm_jax.rollout.engine import RolloutEngine
from gvm_jax.rollout.settings import RolloutSettings
from gvm_jax.runtime.mesh import make_mesh, replica_mesh
from gvm_jax.training.step import TrainStep

_ONE_PROCESS = {"data": -1, "fsdp": 1, "tensor": 1}  # its devices are dealt to replicas whatever its axes
STOP_IDS = (0,)  # which tokens end a response does not change the size of a program


@dataclasses.dataclass(frozen=True)
class Parts:
    """What `training.trainer.Trainer` builds but for the data, the tokenizer (so no id is masked) and the weights."""

    config: ConfigDict
    topology: Topology
    network: Qwen2Config
    mesh: Mesh
    model: Model
    kernels: str  # that a run's rollouts take there: of GPUs, not what the engine below is laid out with
    engine: RolloutEngine  # of one process: the compiler knows no part of a topology, so it is laid over a host's
    step: TrainStep

    @property
    def tensor(self) -> int:
        """Devices of a replica."""
        return self.config.rollout.tensor or self.mesh.shape["tensor"]

    @property
    def replicas(self) -> int:
        """Of all processes."""
        return self.topology.size // self.tensor

    @property
    def width(self) -> int:
        """The widest decode batch that a step's samples fill on every replica."""
        samples = -(-self.config.rollouts_per_step // self.replicas)
        return next((width for width in self.engine.settings.widths if width >= samples), self.engine.settings.slots)

    def lower(self) -> dict[str, jax.stages.Lowered]:
        """The programs of a step in the order of their first use, by name."""
        return {**self.engine.lower(), **self.step.lower()}

    def held(self) -> dict[str, int]:
        """Bytes on one device of the arrays that outlive a program, by what they are."""
        state, policy = self.step.abstract_state, self.engine.abstract_policy
        rest = (state.step, state.statistics, state.prompt_ids, state.counts, state.allocation)
        arrays = {
            "parameters": state.params,
            "optimizer": state.opt_state,
            "reference": state.reference,
            "statistics": rest,
            "rollout weights": policy["weights"],
            "KV pages": policy["cache"],
        }
        return {name: bytes_on_device(tree) for name, tree in arrays.items()}


def build(config: ConfigDict, topology: Topology, num_prompts: int, network: Qwen2Config | None = None) -> Parts:
    """The parts of a config on a topology.

    Args:
      config: validated.
      topology: whose devices the mesh is laid over.
      num_prompts: rows of the training data.
      network: the model's; read from `model.path` where it is not given.

    Raises:
      ConfigError, ModelError: fields that do not suit the topology or the model, or no config.json.
    """
    network = network or Qwen2Config.from_folder(model_folder(config.model.path, weights=False))
    mesh = make_mesh(config.mesh, topology.devices())
    dtype, _ = resolve_compute_dtype(config.model.compute_dtype, topology.chip.platform)
    attention = resolve_attention(config.model.attention, dtype, topology.chip.platform)
    model = Model(network, dtype, config.model.remat, activation_sharding=batch_sharding(mesh), attention=attention)
    settings = RolloutSettings.from_config(config)
    if not topology.compiles:  # laid out over CPU devices; the GPU's kernel reads the same cache as XLA does
        kernels = paged_attention.resolve_attention(settings.attention, topology.chip.platform)
        settings = dataclasses.replace(settings, attention="xla")
    step = TrainStep.from_config(config, model, mesh, num_prompts)
    tensor = settings.tensor or mesh.shape["tensor"]
    replica_mesh(mesh, tensor, divisor(model, "tensor"))  # can the whole topology be dealt out?
    host = topology.host()
    own = mesh if host is topology else make_mesh(ConfigDict(_ONE_PROCESS), host.devices())
    engine = RolloutEngine(model, own, dataclasses.replace(settings, tensor=tensor), STOP_IDS)
    if topology.compiles:
        kernels = engine.kernels
    return Parts(config, topology, network, mesh, model, kernels, engine, step)


def bytes_on_device(tree) -> int:
    """Of arrays with shardings, the share of one device; the layout's padding is not in it."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def replicated_arrays(tree, least_bytes: int = 2**20) -> list[tuple[str, int]]:
    """(path, bytes) of the arrays above a size that every device holds whole; none on a single device."""
    found = []
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        size = math.prod(x.shape) * x.dtype.itemsize
        if size > least_bytes and len(x.sharding.device_set) > 1 and x.sharding.shard_shape(x.shape) == x.shape:
            found.append((jax.tree_util.keystr(path), size))
    return found
