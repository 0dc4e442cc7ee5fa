"""Shared by all tests: a CPU backend with four virtual devices, the compilation cache, and the models they run on."""

import os
import pathlib

# GPU tests, those that one device is enough for: GVM_JAX_TEST_PLATFORM=cuda python -m pytest
# -k "cudnn or brute or refused" tests/models/test_packed_attention.py tests/rollout/kernels/test_partial_gpu.py
os.environ["JAX_PLATFORMS"] = os.environ.get("GVM_JAX_TEST_PLATFORM", "cpu")
# LLVM takes most of the time here, over programs that run for milliseconds. Tests of kills, pods and meshes set
# XLA_FLAGS for their processes, whose programs are compiled as a user's are.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from gvm_jax.models.config import Qwen2Config
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.weights import load_params

ROOT = pathlib.Path(__file__).parent.parent
TINY_UNTIED = ROOT / "tests/models/golden/tiny_untied"

jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> jax.sharding.Mesh:
    devices = np.array(jax.devices()[: data * fsdp * tensor]).reshape(data, fsdp, tensor)
    return jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"))


@pytest.fixture(scope="session")
def mesh():
    return make_mesh()


@pytest.fixture(scope="session")
def test_mesh():
    """A function that makes a mesh over some of the four virtual devices."""
    return make_mesh


def pytest_collection_modifyitems(items) -> None:
    """Files with slow tests come first: a worker that gets one last keeps the others waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


_LOWERED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: _LOWERED.append(event) if event.endswith("jaxpr_to_mlir_module_duration") else None
)


@pytest.fixture
def compilations() -> list[str]:
    """Grows by one for every program that is lowered, be it compiled or found in the persistent cache."""
    return _LOWERED


@pytest.fixture
def without_cache():
    """Keeps programs out of the persistent cache: a TPU's cannot be read back without a TPU."""
    setting = "jax_persistent_cache_min_compile_time_secs"
    usual = getattr(jax.config, setting)
    jax.config.update(setting, float("inf"))
    yield
    jax.config.update(setting, usual)


@pytest.fixture(params=["v5e:2x4", "v5p:2x2x2", "v6e:2x4"])
def tpu_mesh(request):
    """A mesh over eight absent TPUs, two along each axis: libtpu compiles for a topology, Mosaic kernels included."""
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install '.[tpu]'")
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # do not ask a cloud's metadata server what machine this is
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"  # no lock file: there is no device to share
    topology = topologies.get_topology_desc(platform="tpu", topology_name=request.param)
    return jax.sharding.Mesh(np.array(topology.devices).reshape(2, 2, 2), ("data", "fsdp", "tensor"))


@pytest.fixture(scope="session")
def tiny():
    """(model, params, folder) of the random tiny Qwen2 with untied embeddings."""
    model = Model(Qwen2Config.from_folder(TINY_UNTIED))
    return model, load_params(model, TINY_UNTIED), TINY_UNTIED


@pytest.fixture(scope="session")
def qwen25():
    """(model, params, folder) of the real Qwen2.5-Coder-0.5B-Instruct, where its folder is given."""
    folder = os.environ.get("GVM_JAX_QWEN25")
    if not folder:
        pytest.skip("set GVM_JAX_QWEN25 to a folder of Qwen2.5-Coder-0.5B-Instruct to run it")
    model = Model(Qwen2Config.from_folder(pathlib.Path(folder)))
    return model, load_params(model, pathlib.Path(folder)), pathlib.Path(folder)
