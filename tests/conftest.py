"""Shared by all tests: a CPU backend with four virtual devices, the compilation cache, the models, the progress."""

import collections
import faulthandler
import gc
import importlib.metadata
import os
import pathlib
import time

# GPU tests, those that one device is enough for: GVM_JAX_TEST_PLATFORM=cuda python -m pytest
# -k "cudnn or brute or refused" tests/models/test_packed_attention.py tests/rollout/kernels/test_partial_gpu.py
os.environ["JAX_PLATFORMS"] = os.environ.get("GVM_JAX_TEST_PLATFORM", "cpu")
# Compilation takes most of the time here, of programs that run for milliseconds. It takes a quarter of that without
# optimisation and, where XLA has the choice, without its newer emitters. Processes that a test starts inherit this, but
# for those of the test of kills, whose programs are compiled as a user's are.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib") < "0.12" else "",
    ]
)
# Set before JAX is imported, so that the processes that a test starts have the same cache as the test. Most programs
# compile faster than the second that JAX's default wants of an entry, yet there are thousands of them.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parent.parent / ".jax_cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
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
MOST_MEMORY_MAPS = 20_000  # a process that comes to the kernel's limit, 65,530 by default, dies by a segmentation fault


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
    """Files with slow tests come first, whole runs before others: a worker that gets one last keeps others waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, item.path.parent != ROOT / "tests"))


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Drops compiled programs after a file once they take too many memory maps: about six each."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MEMORY_MAPS:
        jax.clear_caches()
        gc.collect()


class Progress:
    """Prints a line for each file that is done and for each test that failed, in the place of a dot for each test."""

    def __init__(self, config) -> None:
        self._config, self._started, self._done = config, time.monotonic(), 0
        self._left, self._outcomes = collections.Counter(), collections.defaultdict(collections.Counter)
        self._seconds = collections.Counter()

    def pytest_xdist_node_collection_finished(self, ids) -> None:
        self._left = collections.Counter(nodeid.partition("::")[0] for nodeid in ids)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report):
        if report.failed:
            return "failed" if report.when == "call" else "error", "", "FAILED"
        if report.when == "call" or report.skipped:
            return report.outcome, "", ""  # counted, and not printed

    def pytest_runtest_logreport(self, report) -> None:
        file = report.nodeid.partition("::")[0]
        self._seconds[file] += report.duration
        if report.when == "call" or report.outcome != "passed":
            self._outcomes[file][report.outcome] += 1
        if report.failed:
            self._line(f"FAILED {report.nodeid}")

    def pytest_runtest_logfinish(self, nodeid) -> None:
        file = nodeid.partition("::")[0]
        self._done += 1
        self._left[file] -= 1
        if not self._left[file]:
            outcomes = ", ".join(f"{number} {outcome}" for outcome, number in self._outcomes[file].items())
            self._line(f"{file}: {outcomes} in {self._seconds[file]:.0f} s")

    def _line(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        total = self._done + sum(self._left.values())
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line(f"{minutes:3}:{seconds:02} {self._done:5} of {total}  {text}")
        reporter.flush()

    def pytest_handlecrashitem(self, crashitem, report) -> None:
        """A crash is told with the stacks of the process that died."""
        stacks = _stacks(self._config, report.node.gateway.id)
        report.longrepr = f"{report.longrepr}\n{stacks.read_text() if stacks.exists() else ''}"


def _stacks(config, worker: str) -> pathlib.Path:
    """File for the stacks of a worker process that crashes."""
    return config.rootpath / ".pytest_cache" / f"stacks-{worker}.txt"


@pytest.hookimpl(trylast=True)  # after pytest's own, which sends them to where another worker's lines go
def pytest_configure(config) -> None:
    if hasattr(config, "workerinput"):
        stacks = _stacks(config, config.workerinput["workerid"])
        stacks.parent.mkdir(exist_ok=True)
        config.stacks = stacks.open("w")  # kept open as long as the session lasts
        faulthandler.enable(config.stacks)
    elif config.getoption("numprocesses", None):
        config.pluginmanager.register(Progress(config))


_LOWERED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: _LOWERED.append(event) if event.endswith("jaxpr_to_mlir_module_duration") else None
)


@pytest.fixture(scope="session")
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


@pytest.fixture
def tpu_mesh(request):
    """A mesh over eight absent TPUs, two along each axis: libtpu compiles for a topology, Mosaic kernels included.

    Its parameter is the topology: "v5e:2x4", "v5p:2x2x2" or "v6e:2x4".
    """
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
