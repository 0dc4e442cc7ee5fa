"""The fastest mesh and micro-batch that fit a topology, by compiling the likeliest ones."""

import dataclasses
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from gvm_jax.config import ConfigError, validate
from gvm_jax.planning.chips import Topology
from gvm_jax.planning.model_flops import Workload
from gvm_jax.planning.parts import Parts, build
from gvm_jax.planning.planner import Plan, make_plan, train_temporaries

MOST = 8  # candidates that are compiled


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mesh and a micro-batch, before anything is compiled."""

    config: ConfigDict
    parts: Parts
    guess: int  # bytes of a device in the train step

    @property
    def name(self) -> str:
        """The flags that set it."""
        mesh = " ".join(f"--config.mesh.{axis}={self.config.mesh[axis]}" for axis in ("data", "fsdp", "tensor"))
        return f"{mesh} --config.optimizer.micro_batch={self.config.optimizer.micro_batch}"


def candidates(config: ConfigDict, topology: Topology, num_prompts: int) -> Iterator[Candidate]:
    """Every mesh over the topology and every micro-batch of up to 16 rows a device that the config allows."""
    sizes = [n for n in range(1, topology.size + 1) if topology.size % n == 0]
    network = None
    for tensor in sizes:
        for fsdp in (n for n in sizes if topology.size % (n * tensor) == 0):
            data = topology.size // (tensor * fsdp)
            for rows in (1, 2, 4, 8, 16):
                changed = ConfigDict(config.to_dict())
                changed.mesh.data, changed.mesh.fsdp, changed.mesh.tensor = data, fsdp, tensor
                changed.optimizer.micro_batch = rows * data * fsdp
                try:
                    validate(changed)
                    parts = build(changed, topology, num_prompts, network)
                except ConfigError:
                    continue
                network = parts.network
                held = parts.held()
                state = sum(held[part] for part in ("parameters", "optimizer", "reference"))
                yield Candidate(changed, parts, state + max(train_temporaries(parts), held["KV pages"]))


def search(
    config: ConfigDict, topology: Topology, num_prompts: int, workload: Workload, show: Callable[[str], None]
) -> list[tuple[Candidate, Plan]]:
    """The candidates that were compiled and fit, fastest step first.

    Those that a formula says will fit are compiled, least tensor axis and largest micro-batch first: a tensor axis
    costs two reductions of activations a layer, a small micro-batch reads the weights more often. Of each the train
    step and the decode block that a step runs most are compiled.
    """
    known = list(candidates(config, topology, num_prompts))
    likely = [c for c in known if c.guess <= 1.1 * topology.chip.hbm_bytes]
    # Of a mesh, the largest micro-batch that should fit and the one below.
    by_mesh: dict[tuple, list[Candidate]] = {}
    for candidate in likely:
        by_mesh.setdefault(tuple(candidate.config.mesh.values()), []).append(candidate)
    chosen = [c for group in by_mesh.values() for c in group[-2:]]
    chosen.sort(key=lambda c: (c.config.mesh.tensor, c.config.mesh.data, -c.config.optimizer.micro_batch))
    show(f"{len(known)} meshes and micro-batches, {len(likely)} may fit, {min(len(chosen), MOST)} will be compiled")
    plans = []
    for number, candidate in enumerate(chosen[:MOST], 1):
        show(f"{number}/{min(len(chosen), MOST)} {candidate.name}")
        plan = make_plan(candidate.parts, workload, show, only=("train step", f"decode {candidate.parts.width}"))
        if plan.fits:
            plans.append((candidate, plan))
            show(f"  fits, {plan.step_seconds:.1f} s a step" if plan.step_seconds else "  fits")
    return sorted(plans, key=lambda pair: pair[1].step_seconds or 0.0)
