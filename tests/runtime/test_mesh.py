"""Sizes fill the devices or are refused; the compute dtype follows the device."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
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


@pytest.mark.parametrize(
    ("name", "backend", "version", "amx", "dtype"),
    [
        ("auto", "tpu", (0, 10, 2), False, jnp.bfloat16),
        ("auto", "gpu", (0, 10, 2), False, jnp.bfloat16),
        ("auto", "cpu", (0, 12, 0), True, jnp.bfloat16),
        ("auto", "cpu", (0, 12, 0), False, jnp.float32),
        ("auto", "cpu", (0, 11, 9), True, jnp.float32),
        ("float32", "tpu", (0, 12, 0), True, jnp.float32),
        ("bfloat16", "cpu", (0, 10, 2), False, jnp.bfloat16),
    ],
)
def test_the_compute_dtype_is_the_faster_one(monkeypatch, name, backend, version, amx, dtype):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "__version_info__", version)
    monkeypatch.setattr(mesh, "_cpu_has_amx", lambda: amx)
    resolved, reason = mesh.resolve_compute_dtype(name)
    assert resolved == dtype
    assert reason.startswith(f"{resolved.name}: ") and "\n" not in reason
