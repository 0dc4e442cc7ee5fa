"""The accelerators that can be planned for, and topologies of them by name, such as "v5e:4x4" or "h100:8"."""

import dataclasses
import math
import os
import re

import jax
from jax.experimental import topologies

from gvm_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as JAX sees it: a device. Numbers are the vendors' peaks, per device."""

    platform: str  # tpu | gpu
    flops: float  # bfloat16 operations a second
    hbm_bytes: float  # memory that a program may use
    hbm_bandwidth: float  # bytes a second
    link_bandwidth: float  # bytes a second, both ways together, along one ring of the interconnect
    shape: str  # of a topology's size: the form and an example
    host: str  # size of the part that a process has, of a topology that is no smaller
    per_chip: int = 1  # devices that a chip shows


GIB = 2**30
# Sources. TPU peaks and interconnect: cloud.google.com/tpu/docs/{v5e,v5p,v6e,tpu7x} and
# jax-ml.github.io/scaling-book/tpus, whose one-axis bidirectional rate is the ring's. hbm_bytes of a TPU is what its
# compiler accepts, a little less than is sold (16, 95, 32 and 192 GB). GPU: NVIDIA's H100 SXM and H200 data sheets,
# dense rates; hbm_bytes is what a driver leaves of 80 and 141 GB times 0.95, XLA's share with
# XLA_PYTHON_CLIENT_MEM_FRACTION=.95.
CHIPS = {
    "v5e": Chip("tpu", 197e12, 15.75 * GIB, 819e9, 90e9, "ROWSxCOLUMNS, as v5e:4x4", "2x2"),
    "v5p": Chip("tpu", 459e12, 95.74 * GIB, 2765e9, 180e9, "XxYxZ, as v5p:4x4x4", "2x2x1"),
    "v6e": Chip("tpu", 918e12, 31.25 * GIB, 1640e9, 180e9, "ROWSxCOLUMNS, as v6e:2x4", "2x2"),
    "tpu7x": Chip("tpu", 1153e12, 94.75 * GIB, 3690e9, 200e9, "XxYxZ, as tpu7x:2x2x1", "2x2x1", per_chip=2),
    "h100": Chip("gpu", 989e12, 0.95 * 79.1 * GIB, 3350e9, 900e9, "GPUS of one machine, as h100:8", ""),
    "h200": Chip("gpu", 989e12, 0.95 * 140.0 * GIB, 4800e9, 900e9, "GPUS of one machine, as h200:8", ""),
}


# What JAX and PyTorch call a device -> its chip. Whole names: an H100 PCIe, a GH200 and a MIG slice have other peaks.
_KINDS = {
    "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p",
    "TPU v5p": "v5p", "TPU v6 lite": "v6e", "TPU v6e": "v6e", "TPU7x": "tpu7x",
}  # fmt: skip


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a device that is there; None of one that is not known, such as a CPU."""
    return CHIPS.get(_KINDS.get(device_kind))


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of one kind, as many as the name says."""

    name: str
    chip: Chip
    size: int  # devices

    @classmethod
    def parse(cls, name: "str | Topology") -> "Topology":
        """Of a name such as "v5e:4x4"; ConfigError for any other. A topology is itself."""
        if isinstance(name, Topology):
            return name
        kind, _, shape = name.partition(":")
        if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", shape):
            allowed = "; ".join(f"{name}:{chip.shape}" for name, chip in CHIPS.items())
            raise ConfigError(f"--topology={name!r}: no known topology; it is one of {allowed}")
        sizes = [int(size) for size in shape.split("x")]
        chip = CHIPS[kind]
        wanted = {"X": 3, "R": 2, "G": 1}[chip.shape[0]]
        if len(sizes) != wanted:
            raise ConfigError(f"--topology={name!r}: the size of a {kind} topology is {chip.shape}")
        return cls(name, chip, math.prod(sizes) * chip.per_chip)

    @property
    def compiles(self) -> bool:
        """Whether there is a compiler for it that needs no device."""
        return self.chip.platform == "tpu"

    def host(self) -> "Topology":
        """The part of it that one process has; all of it where that is no less."""
        if not self.compiles:
            return self
        host = Topology.parse(f"{self.name.partition(':')[0]}:{self.chip.host}")
        return host if host.size < self.size else self

    def devices(self) -> list:
        """The absent devices: of a TPU topology libtpu's, which programs are compiled for; of GPUs virtual CPU devices,
        over which arrays are only laid out.

        Raises:
          ConfigError: libtpu is missing or knows no such topology; JAX was already started with fewer CPU devices.
        """  # fmt: skip
        if not self.compiles:
            if len(jax.devices("cpu")) < self.size:
                raise ConfigError(
                    f"--topology={self.name}: wants {self.size} virtual devices; call "
                    f"jax.config.update('jax_num_cpu_devices', {self.size}) before JAX is used"
                )
            return jax.devices("cpu")[: self.size]
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask a cloud's metadata server what machine this is
        # It logs errors where it cannot find out which machine this is; the topology alone counts here.
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")  # no lock file: there is no device to share
        try:
            devices = topologies.get_topology_desc(platform="tpu", topology_name=self.name).devices
        except Exception as error:  # whatever the plugin raises
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"--topology={self.name}: libtpu does not give it ({reason}); pip install -e '.[tpu]' in the "
                f"checkout if libtpu is not there, and use a shape that is sold, {self.chip.shape}"
            ) from error
        if len(devices) != self.size:
            raise ConfigError(
                f"--topology={self.name}: libtpu gives {len(devices)} devices where {self.size} are known"
            )
        return list(devices)
