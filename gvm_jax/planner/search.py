"""The fastest mesh and micro-batch that fit a topology, by compiling the likeliest ones."""

import itertools
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from gvm_jax.config import ConfigError
from gvm_jax.planner.abstract_run import AbstractRun, Assumptions, build_changed
from gvm_jax.planner.estimates import train_temporaries
from gvm_jax.planner.planner import Plan, plan_run
from gvm_jax.planner.topologies import Topology

MOST = 8  # candidates that are compiled


def candidates(config: ConfigDict, topology: Topology, assumptions: Assumptions) -> Iterator[AbstractRun]:
    """Every mesh over the topology and every micro-batch of up to 16 rows a device that the config allows."""
    sizes = [n for n in range(1, topology.size + 1) if topology.size % n == 0]
    network = None
    for tensor, fsdp, rows in itertools.product(sizes, sizes, (1, 2, 4, 8, 16)):
        if topology.size % (fsdp * tensor) == 0:
            data = topology.size // (tensor * fsdp)
            fields = {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor}
            fields["optimizer.micro_batch"] = rows * data * fsdp
            if run := build_changed(config, fields, topology, assumptions, network):
                network = run.network
                yield run


def search(
    config: ConfigDict,
    topology: str | Topology,
    *,
    assumptions: Assumptions | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Plan]:
    """The plans of the candidates that were compiled and fit, fastest step first; arguments as of `planner.plan`.

    Candidates that a formula says will fit are compiled, least tensor axis and largest micro-batch first: a tensor axis
    costs two reductions of activations a layer, a small micro-batch reads the weights more often. Of each the train
    step and the decode block that a step runs most are compiled.

    Raises:
      ConfigError, ModelError: of GPUs, which nothing is compiled for; and as `planner.plan`.
    """
    topology, assumptions = Topology.parse(topology), assumptions or Assumptions()
    if not topology.compiles:
        raise ConfigError(f"--search: compiles, which {topology.name} cannot be done for; plan single meshes instead")
    known = list(candidates(config, topology, assumptions))
    likely = [run for run in known if _guess(run) <= 1.1 * topology.chip.hbm_bytes]
    # Of a mesh, the largest micro-batch that should fit and the one below.
    by_mesh: dict[tuple, list[AbstractRun]] = {}
    for run in likely:
        by_mesh.setdefault(tuple(run.config.mesh.values()), []).append(run)
    chosen = [run for runs in by_mesh.values() for run in runs[-2:]]
    chosen.sort(key=lambda run: (run.config.mesh.tensor, run.config.mesh.data, -run.config.optimizer.micro_batch))
    chosen = chosen[:MOST]
    progress(f"{len(known)} meshes and micro-batches, {len(likely)} may fit, {len(chosen)} will be compiled")
    plans = []
    for number, run in enumerate(chosen, 1):
        progress(f"{number}/{len(chosen)} {run.flags}")
        plan = plan_run(run, progress, only=("train step", f"decode {run.width}"))
        if plan.fits:
            plans.append(plan)
            progress(f"  fits, {plan.step_seconds:.1f} s a step" if plan.step_seconds else "  fits")
    return sorted(plans, key=lambda plan: plan.step_seconds or 0.0)


def _guess(run: AbstractRun) -> int:
    """Bytes of a device in the train step, or while sampling."""
    held = run.held()
    state = sum(held[part] for part in ("parameters", "optimizer", "reference"))
    return state + max(train_temporaries(run), held["KV pages"])
