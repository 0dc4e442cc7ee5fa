"""Sizes fill the devices or are refused."""

import os
import subprocess
import sys

import jax
import pytest

from gvm_jax.config import ConfigError, get_config
from gvm_jax.runtime import mesh

FOUR_DEVICES = """
from ml_collections import ConfigDict
from gvm_jax.config import ConfigError
from gvm_jax.runtime.mesh import describe_devices, make_mesh

fill = [(-1, 1, 1), (-1, 2, 1), (1, -1, 2), (2, 1, -1), (2, 2, 1)]
refused = [(1, 1, 1), (-1, 3, 1), (-1, 8, 1), (4, 2, 1)]
for sizes in fill + refused:
    try:
        print(*make_mesh(ConfigDict(dict(zip(("data", "fsdp", "tensor"), sizes)))).shape.values())
    except ConfigError as error:
        print(error)
print(describe_devices())
"""


def test_axes_fill_four_devices_or_are_refused():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    result = subprocess.run(
        [sys.executable, "-c", FOUR_DEVICES], env=environment, capture_output=True, text=True, check=True
    )
    *filled, idle, three, eight, product, devices = result.stdout.splitlines()
    assert filled == ["4 1 1", "2 2 1", "1 2 2", "2 1 2", "2 2 1"]
    for error in (idle, three, eight, product):
        assert "mesh.data = " in error and "4 cpu device(s)" in error
    assert "mesh.fsdp = 3" in three
    assert devices.startswith("4 × cpu (cpu), 1 process(es), jax ")


def test_the_default_mesh_has_the_three_axes():
    made = mesh.make_mesh(get_config().mesh)
    assert made.axis_names == ("data", "fsdp", "tensor")
    assert made.devices.size == len(jax.devices())


def test_a_mesh_over_given_devices_uses_these():
    made = mesh.make_mesh(get_config().mesh, jax.devices()[:1])
    assert made.devices.flatten().tolist() == jax.devices()[:1]
    sizes = get_config().mesh
    sizes.tensor = 2
    with pytest.raises(ConfigError, match=r"mesh\.tensor = 2: cannot be laid over 1 "):
        mesh.make_mesh(sizes, jax.devices()[:1])
