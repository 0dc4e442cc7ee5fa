"""The devices of a run: the mesh over them, and the dtype they compute fastest."""

import math
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
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
    fixed = math.prod(mesh[axis] for axis in AXES if mesh[axis] != -1)
    sizes = tuple(len(devices) // fixed if mesh[axis] == -1 else mesh[axis] for axis in AXES)
    if math.prod(sizes) != len(devices):
        shown = ", ".join(f"mesh.{axis} = {mesh[axis]}" for axis in AXES)
        raise ConfigError(
            f"{shown}: cannot be laid over {len(devices)} {devices[0].device_kind} device(s); the sizes must "
            f"multiply to {len(devices)}, and one -1 takes what the others leave; set them with "
            "--config.mesh.AXIS=SIZE"
        )
    # Auto: the compiler propagates shardings from the annotated arrays.
    axis_types = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=axis_types, devices=devices)


def replica_mesh(mesh: jax.sharding.Mesh, tensor: int) -> jax.sharding.Mesh:
    """The mesh's devices as replicas of `tensor` devices of one process along the axis "data".

    The devices keep their order where it allows that; else they are put in order of their processes. A mesh follows
    the chips' links, so neighbours in it may belong to different hosts.

    Raises:
      ConfigError: a replica would be left incomplete, or spread over processes.
    """
    if mesh.devices.size % tensor:
        raise ConfigError(
            f"rollout.tensor = {tensor}: does not divide the {mesh.devices.size} devices of the mesh; use a divisor, "
            "or 0 for mesh.tensor"
        )
    replicas = mesh.devices.reshape(-1, 1, tensor)
    if any(len({device.process_index for device in devices}) > 1 for devices in replicas[:, 0]):
        order = np.argsort([device.process_index for device in mesh.devices.flat], kind="stable")
        replicas = mesh.devices.reshape(-1)[order].reshape(-1, 1, tensor)
    for devices in replicas[:, 0]:
        processes = {device.process_index for device in devices}
        if len(processes) > 1:
            own = sum(device.process_index == devices[0].process_index for device in mesh.devices.flat)
            raise ConfigError(
                f"rollout.tensor = {tensor} (0 = mesh.tensor): a replica would span processes {sorted(processes)}, and "
                f"each process samples by itself; use a divisor of a process's {own} devices"
            )
    return jax.sharding.Mesh(replicas, AXES)


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


def compiler_options(mesh: jax.sharding.Mesh) -> dict[str, bool]:
    """What `jax.jit` is to tell the compiler of a program over this mesh.

    XLA's CPU backend may start collectives that need nothing of each other in another order on each of its virtual
    devices, which then wait for one another for ever. With its sequential schedule they keep one order.
    """
    several_cpus = mesh.devices.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return {"xla_cpu_enable_concurrency_optimized_scheduler": False} if several_cpus else {}


def _cpu_has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware (Intel AMX); Linux only, False elsewhere."""
    try:
        return "amx_bf16" in pathlib.Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


def resolve_compute_dtype(name: str, backend: str | None = None) -> tuple[jnp.dtype, str]:
    """The dtype that `model.compute_dtype` stands for on a backend's devices (default: JAX's own), and one line why.

    "auto" is bfloat16 on TPU and GPU. On a CPU it is bfloat16 only where that is the faster one: with AMX,
    which XLA uses for bfloat16 from jax 0.12 on.
    """
    backend = backend or jax.default_backend()
    if name != "auto":
        slow = name == "bfloat16" and backend == "cpu" and jax.__version_info__ < (0, 12)
        remark = ", though float32 is much faster on a CPU before jax 0.12" if slow else ""
        return jnp.dtype(name), f"{name}: model.compute_dtype asks for it{remark}"
    if backend in ("tpu", "gpu"):
        return jnp.dtype(jnp.bfloat16), f"bfloat16: auto on {backend}"
    if jax.__version_info__ < (0, 12):
        return jnp.dtype(jnp.float32), f"float32: auto on {backend}; jax {jax.__version__} < 0.12 is slower in bfloat16"
    if not _cpu_has_amx():
        return jnp.dtype(jnp.float32), f"float32: auto on {backend} without AMX, which is slower in bfloat16"
    return jnp.dtype(jnp.bfloat16), f"bfloat16: auto on {backend} with AMX"


def describe_devices() -> str:
    """One line for the log: devices, processes and the version of jax."""
    devices = jax.devices()
    kind = f"{devices[0].platform} ({devices[0].device_kind})"
    return f"{len(devices)} × {kind}, {jax.process_count()} process(es), jax {jax.__version__}"
