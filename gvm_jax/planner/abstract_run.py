"""A run's programs and arrays for devices that are not there, from a config and the model's config.json alone."""

import dataclasses
import math

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gvm_jax.config import ConfigError, validate
from gvm_jax.models.assemble import make_model
from gvm_jax.models.config import Qwen2Config, model_folder
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.sharding import divisor
from gvm_jax.planner.topologies import Topology
from gvm_jax.rollout import paged_attention
from gvm_jax.rollout.engine import RolloutEngine
from gvm_jax.rollout.settings import RolloutSettings
from gvm_jax.runtime.mesh import make_mesh, replica_mesh
from gvm_jax.training.step import TrainStep

_ONE_PROCESS = {"data": -1, "fsdp": 1, "tensor": 1}  # its devices are dealt to replicas whatever its axes
STOP_IDS = (0,)  # which tokens end a response does not change the size of a program
STATE = ("parameters", "optimizer", "reference", "statistics")  # of `AbstractRun.held`: on a device always
POLICY = ("rollout weights", "KV pages")  # from the first to the last sample of a step


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """Properties of the data, which the planner does not read. None is a guess from the config's limits."""

    data_rows: int = 100_000  # the statistics have a row for each
    prompt_tokens: float | None = None  # mean of a prompt; else a quarter of data.max_prompt_tokens
    response_tokens: float | None = None  # mean of a response; else a third of rollout.max_new_tokens


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """A run without its data, its tokenizer (so no id is masked) and its weights."""

    config: ConfigDict
    topology: Topology
    assumptions: Assumptions
    network: Qwen2Config
    mesh: Mesh
    model: Model
    kernels: str  # of a run's rollouts there; for GPUs the engine below is laid out with others
    engine: RolloutEngine  # of one process: the compiler knows no part of a topology, so it is laid over a host's
    step: TrainStep

    @classmethod
    def build(
        cls, config: ConfigDict, topology: Topology, assumptions: Assumptions, network: Qwen2Config | None = None
    ) -> "AbstractRun":
        """The run of a config on a topology.

        Args:
          config: is validated.
          topology: whose devices the mesh is laid over.
          assumptions: of the data.
          network: the model's; read from `model.path` where it is not given.

        Raises:
          ConfigError, ModelError: fields that do not suit the topology or the model, or no config.json.
        """
        validate(config)
        network = network or Qwen2Config.from_folder(model_folder(config.model.path, weights=False))
        mesh, platform = make_mesh(config.mesh, topology.devices()), topology.chip.platform
        model = _model(config, network, mesh, platform)
        settings = RolloutSettings.from_config(config)
        if not topology.compiles:  # laid out over CPU devices; the GPU's kernel reads the same cache as XLA does
            kernels = paged_attention.resolve_attention(settings.attention, platform)
            settings = dataclasses.replace(settings, attention="xla")
        tensor = settings.tensor or mesh.shape["tensor"]
        step = TrainStep.from_config(config, model, mesh, assumptions.data_rows)
        replica_mesh(mesh, tensor, divisor(model, "tensor"))  # can the whole topology be dealt out?
        host = topology.host()
        own = mesh if host is topology else make_mesh(ConfigDict(_ONE_PROCESS), host.devices())
        engine = RolloutEngine(model, own, dataclasses.replace(settings, tensor=tensor), STOP_IDS)
        if topology.compiles:
            kernels = engine.kernels
        return cls(config, topology, assumptions, network, mesh, model, kernels, engine, step)

    def changed(self, fields: dict[str, object]) -> "AbstractRun | None":
        """The run with other values of some fields ("mesh.fsdp": 2); None where they cannot be."""
        return build_changed(self.config, fields, self.topology, self.assumptions, self.network)

    @property
    def flags(self) -> str:
        config = self.config
        mesh = " ".join(f"--config.mesh.{axis}={config.mesh[axis]}" for axis in ("data", "fsdp", "tensor"))
        return f"{mesh} --config.optimizer.micro_batch={config.optimizer.micro_batch}"

    @property
    def prompt_tokens(self) -> float:
        return self.assumptions.prompt_tokens or self.config.data.max_prompt_tokens / 4

    @property
    def response_tokens(self) -> float:
        return self.assumptions.response_tokens or self.config.rollout.max_new_tokens / 3

    @property
    def max_tokens(self) -> int:
        """The longest sample with its prompt: a packed row has `optimizer.samples_per_row` times as many."""
        return self.engine.settings.max_tokens

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
        samples, settings = -(-self.config.rollouts_per_step // self.replicas), self.engine.settings
        return next((width for width in settings.widths if width >= samples), settings.slots)

    def lower(self) -> dict[str, jax.stages.Lowered]:
        """The programs of a step in the order of their first use, by name."""
        return {**self.engine.lower(), **self.step.lower()}

    def held(self, program: str = "") -> dict[str, int]:
        """Bytes on one device of the arrays that outlive a program, by name.

        While it samples a run holds the state and the policy. `Trainer.collect` drops the policy when the last sample
        is in, so the train step has the state alone; the pilot program runs in between and has both.
        """
        state, policy = self.step.abstract_state, self.engine.abstract_policy
        statistics = (state.step, state.statistics, state.prompt_ids, state.counts, state.allocation)
        arrays = dict(zip(STATE, (state.params, state.opt_state, state.reference, statistics), strict=True))
        if program != "train step":
            arrays |= zip(POLICY, (policy["weights"], policy["cache"]), strict=True)
        return {name: bytes_on_device(tree) for name, tree in arrays.items()}


def build_changed(config: ConfigDict, fields: dict[str, object], *arguments) -> AbstractRun | None:
    """The run of a config with other values of some fields; None where they cannot be. Arguments as of `build`."""
    changed = ConfigDict(config.to_dict())
    changed.update_from_flattened_dict(fields)
    try:
        return AbstractRun.build(changed, *arguments)
    except ConfigError:
        return None


def _model(config: ConfigDict, network: Qwen2Config, mesh: Mesh, platform: str) -> Model:
    return make_model(config.model, network, mesh, platform)[0]


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
