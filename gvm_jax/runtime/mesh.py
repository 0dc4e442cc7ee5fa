"""The devices of a run, and the mesh over them."""

import collections
import math
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from gvm_jax.config import ConfigError

AXES = ("data", "fsdp", "tensor")


def make_mesh(mesh: ConfigDict, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh with axes ("data", "fsdp", "tensor") over all devices, or over the given ones.

    Args:
      mesh: the `mesh` section of the config: the size of each axis; -1 = the devices that the others leave.
      devices: devices of all processes; default `jax.devices()`.

    Raises:
      ConfigError: where the sizes do not multiply to the number of devices: none idles unnoticed.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(mesh, len(devices), devices[0].device_kind)
    # Auto: the compiler propagates shardings from the annotated arrays.
    axis_types = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=axis_types, devices=devices)


def mesh_sizes(mesh: ConfigDict, count: int, kind: str) -> tuple[int, ...]:
    """The sizes of the axes over `count` devices of a kind; arguments and errors as of `make_mesh`."""
    fixed = math.prod(mesh[axis] for axis in AXES if mesh[axis] != -1)
    sizes = tuple(count // fixed if mesh[axis] == -1 else mesh[axis] for axis in AXES)
    if math.prod(sizes) != count:
        shown = ", ".join(f"mesh.{axis} = {mesh[axis]}" for axis in AXES)
        # Divisors of what was asked for: they divide what that divided.
        tensor = math.gcd(max(mesh.tensor, 1), count)
        fsdp = math.gcd(max(mesh.fsdp, 1), count // tensor)
        raise ConfigError(
            f"{shown}: cannot be laid over {count} {kind} device(s); the sizes must multiply to {count}, and one -1 "
            f"takes what the others leave; use {mesh_flags(fsdp, tensor)}"
        )
    return sizes


def mesh_flags(fsdp: int, tensor: int) -> str:
    """The flags of a mesh whose data axis takes the devices that these leave."""
    return f"--config.mesh.data=-1 --config.mesh.fsdp={fsdp} --config.mesh.tensor={tensor}"


def replica_mesh(mesh: jax.sharding.Mesh, tensor: int, divisor: int) -> jax.sharding.Mesh:
    """The mesh's devices as replicas of `tensor` devices of one process along the axis "data".

    The devices keep their order where it allows that; else they are put in order of their processes. A mesh follows
    the chips' links, so neighbours in it may belong to different hosts.

    Args:
      mesh: of all processes.
      tensor: devices of a replica.
      divisor: what the model's tensors can be split by: a multiple of each number of devices that a replica may have.

    Raises:
      ConfigError: a replica would be left incomplete or spread over processes, or could not split the model.
    """
    processes = [device.process_index for device in mesh.devices.flat]
    check_replicas(tensor, math.gcd(*collections.Counter(processes).values()), divisor)
    replicas = mesh.devices.reshape(-1, 1, tensor)
    if any(len({device.process_index for device in devices}) > 1 for devices in replicas[:, 0]):
        order = np.argsort(processes, kind="stable")
        replicas = mesh.devices.reshape(-1)[order].reshape(-1, 1, tensor)
    return jax.sharding.Mesh(replicas, AXES)


def check_replicas(tensor: int, devices: int, divisor: int) -> None:
    """Whether replicas of `tensor` devices can be made of `devices` of each process; as `replica_mesh`."""
    most = math.gcd(devices, divisor)
    if most % tensor:
        allowed = " or ".join(str(size) for size in range(1, most + 1) if most % size == 0)
        raise ConfigError(
            f"rollout.tensor = {tensor} (0 = mesh.tensor): must divide the {devices} device(s) of a process, each of "
            f"which samples by itself, and the {divisor} parts that the model can be split into; use "
            f"--config.rollout.tensor={allowed}"
        )


def local_mesh(replicas: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The replicas of this process; of a mesh over absent devices, those of its first process."""
    processes = [device.process_index for device in replicas.devices[:, 0, 0]]
    mine = jax.process_index() if jax.process_index() in processes else processes[0]
    return jax.sharding.Mesh(replicas.devices[np.array(processes) == mine], AXES)


def on_local_mesh(array: jax.Array, sharding: jax.sharding.NamedSharding) -> jax.Array:
    """This process's replicas of an array that is whole on every replica; no data moves.

    Args:
      array: over all processes' replicas.
      sharding: the same over those of this process.
    """
    if array.sharding == sharding:
        return array
    shards = [shard.data for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)


def put(tree, sharding: jax.sharding.Sharding):
    """Host arrays that every process has, as global arrays; each process uploads its devices' parts alone.

    `jax.device_put` would compare them over all processes first, which costs a transfer of the whole.
    """
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), tree)


def describe_devices() -> str:
    """One line for the log: devices, processes and the version of jax."""
    devices = jax.devices()
    kind = f"{devices[0].platform} ({devices[0].device_kind})"
    return f"{len(devices)} × {kind}, {jax.process_count()} process(es), jax {jax.__version__}"
