"""The plan of a config on a topology: each program's memory, costs and roofline, and those of a whole step."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Collection

import jax
from ml_collections import ConfigDict

from gvm_jax.models.config import Qwen2Config
from gvm_jax.models.sharding import BATCH_AXES
from gvm_jax.planner.abstract_run import AbstractRun, Assumptions, replicated_arrays
from gvm_jax.planner.estimates import decode_temporaries, train_temporaries
from gvm_jax.planner.hlo import Shape, parse
from gvm_jax.planner.hlo_costs import Costs, program_costs
from gvm_jax.planner.model_flops import kernel_costs, packed_share, program_flops
from gvm_jax.planner.topologies import Topology

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class ProgramPlan:
    """One program on one device; bytes, operations and seconds of one run."""

    name: str
    held: dict[str, int]  # arrays that are on the device anyway, by name (`AbstractRun.held`)
    batch: int  # its other arguments, and results
    temporaries: int  # activations, gradients, buffers of collectives
    code: int = 0  # of all programs, which stay loaded
    fits_alone: bool = True  # False: the compiler found no room for it
    costs: Costs | None = None  # as compiled, the kernels' added; None where it was not compiled
    model_flops: float = 0.0  # of all devices

    @property
    def total(self) -> int:
        """Bytes on a device while it runs."""
        return sum(self.held.values()) + self.batch + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Plan:
    """Of a config on a topology. `tables.render` shows it, with advice where it does not fit."""

    run: AbstractRun
    programs: tuple[ProgramPlan, ...]
    replicated: tuple[tuple[str, int], ...]  # (path, bytes) of the train step's arrays above 1 MB held whole everywhere

    @property
    def capacity(self) -> float:
        return self.run.topology.chip.hbm_bytes

    @property
    def overfull(self) -> tuple[ProgramPlan, ...]:
        return tuple(p for p in self.programs if not p.fits_alone or p.total > self.capacity)

    @property
    def fits(self) -> bool:
        return not self.overfull

    def program(self, name: str) -> ProgramPlan | None:
        return next((p for p in self.programs if p.name == name), None)

    def roofline(self, program: ProgramPlan) -> tuple[float, str] | None:
        """(least seconds of one run, the limit that sets them), all else hidden behind it; None if not compiled."""
        if program.costs is None:
            return None
        chip, costs = self.run.topology.chip, program.costs
        seconds = {
            "compute": costs.flops / chip.flops,
            "memory": costs.bytes / chip.hbm_bandwidth,
            "links": costs.ring_bytes / chip.link_bandwidth,
        }
        bound = max(seconds, key=seconds.get)
        return seconds[bound], bound

    def runs(self, program: ProgramPlan) -> float:
        """How often a step runs it on a device, with every replica as busy as the others.

        The train step and the pilot program skip empty micro-batches: their costs are those of samples that fill a row
        each, and the share counts that shorter ones fill, packed.
        All slots are taken to be busy where there are samples enough: the narrower batches of a step's last and
        longest samples are left out.
        """
        run, config = self.run, self.run.config
        if program.name in ("train step", "pilot"):
            return packed_share(run)
        if program.name == "prefill":
            prompts = config.prompts_per_step * (2 if run.step.pilot_rollouts else 1)
            return math.ceil(prompts * run.prompt_tokens / (run.replicas * config.rollout.prefill_tokens))
        if program.name == f"decode {run.width}":
            # A sample is in one slot: however many there are, its own tokens come one after another.
            waves = max(config.rollouts_per_step / (run.replicas * run.width), 1.0)
            return math.ceil(waves * run.response_tokens / config.rollout.block_steps)
        if program.name == "copy pages":  # once for each sample, `slots` at a time
            return math.ceil(config.rollouts_per_step / (run.replicas * run.engine.settings.slots))
        return 0.0

    @property
    def step_seconds(self) -> float | None:
        """The least seconds of a step; None where a program that it runs has no costs."""
        pairs = [(runs, self.roofline(program)) for program in self.programs if (runs := self.runs(program))]
        if any(roofline is None for _, roofline in pairs):
            return None
        return sum(runs * roofline[0] for runs, roofline in pairs)

    @property
    def tokens_per_second_per_chip(self) -> float | None:
        if not self.step_seconds:
            return None
        topology, tokens = self.run.topology, self.run.config.rollouts_per_step * self.run.response_tokens
        return tokens / self.step_seconds / (topology.size / topology.chip.per_chip)


def plan(
    config: ConfigDict,
    topology: str | Topology,
    *,
    assumptions: Assumptions | None = None,
    network: Qwen2Config | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Compiles every program of a config for devices that are not there.

    Of GPUs it lays arrays out over virtual CPU devices, which must be there: in a process of your own, call
    `jax.config.update("jax_num_cpu_devices", 8)` before anything of JAX is used.

    Args:
      config: as a run takes it.
      topology: such as "v5e:4x4" or "h100:8"; `topologies.py` lists them.
      assumptions: of the data, which are not read.
      network: of the model; read from the config.json of `model.path` where it is not given.
      progress: is called with a line for each program.

    Raises:
      ConfigError, ModelError: fields or a topology that cannot be planned for.
    """
    run = AbstractRun.build(config, Topology.parse(topology), assumptions or Assumptions(), network)
    return plan_run(run, progress)


def plan_run(run: AbstractRun, progress: Callable[[str], None] = lambda line: None, only: Collection[str] = ()) -> Plan:
    """Compiles the programs of a run, or the ones named in `only`, one after another.

    GPU programs cannot be compiled without a GPU: there the plan has two rows, of estimates.
    """
    state = run.step.abstract_state
    replicated = tuple(replicated_arrays((state.params, state.opt_state, state.reference)))
    if not run.topology.compiles:
        return Plan(run, _estimated(run), replicated)
    progress(f"tracing the programs of {run.config.model.path}")
    lowered = {name: program for name, program in run.lower().items() if not only or name in only}
    done = []
    for number, (name, program) in enumerate(lowered.items(), 1):
        progress(f"compiling {number}/{len(lowered)}: {name}")
        begin = time.perf_counter()
        done.append(compile_program(run, name, program))
        fits = "" if done[-1].fits_alone else ": does not fit on the device by itself"
        progress(f"  {time.perf_counter() - begin:.1f} s{fits}")
    code = sum(program.code for program in done)
    return Plan(run, tuple(dataclasses.replace(program, code=code) for program in done), replicated)


def compile_program(run: AbstractRun, name: str, lowered: jax.stages.Lowered) -> ProgramPlan:
    """One program, compiled; `code` is its own. Running out of memory is an answer, not an error."""
    held, model_flops = run.held(name), program_flops(run, name)
    # The arguments that the run holds anyway.
    arguments = {"train step": held, "pilot": ("parameters", "statistics"), "copy pages": ("KV pages",)}.get(
        name, ("rollout weights" if held.get("rollout weights") else "parameters", "KV pages")
    )
    given = sum(held[array] for array in arguments)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        temporaries = max(_used_bytes(str(error)) - given, 0)  # the compiler names one sum
        return ProgramPlan(name, held, 0, temporaries, fits_alone=False, model_flops=model_flops)
    memory, cache = compiled.memory_analysis(), run.engine.abstract_policy["cache"]
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes  # those that take no argument's place
    dtype = {"bfloat16": "bf16", "float32": "f32"}[cache.dtype.name]
    by_hand = Shape(dtype, cache.sharding.shard_shape(cache.shape)[1:])  # a device has one replica
    costs = program_costs(parse(compiled.as_text()), run.topology.size, loop_runs(run, name), by_hand)
    flops, read = kernel_costs(run, name)
    return ProgramPlan(
        name=name,
        held=held,
        batch=max(memory.argument_size_in_bytes - given, 0) + results,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        costs=dataclasses.replace(costs, flops=costs.flops + flops, bytes=costs.bytes + read),
        model_flops=model_flops,
    )


def _used_bytes(message: str) -> int:
    """The bytes that the compiler says a program needs: "Used 20.31G of 15.75G hbm"."""
    used = re.search(r"Used ([\d.]+)([KMGT]?)i?B? of", message)
    return int(float(used[1]) * _UNITS[used[2]]) if used else 0


def loop_runs(run: AbstractRun, name: str) -> int:
    """How often a program's loops run whose end depends on data.

    A decode block's ends when every sequence has ended; the train step's over chunks of log-probabilities when all
    response tokens of a device's rows are done.
    """
    config = run.config
    if name.startswith("decode"):
        return config.rollout.block_steps
    if name != "train step":
        return 1
    shards = math.prod(run.mesh.shape[axis] for axis in BATCH_AXES)
    tokens = config.optimizer.micro_batch // shards * config.rollout.max_new_tokens
    return -(-tokens // config.optimizer.logprob_chunk)


def _estimated(run: AbstractRun) -> tuple[ProgramPlan, ...]:
    """Two programs for devices without a compiler: arrays exactly as they are laid out, temporaries by formula."""
    config, train, decode = run.config, "train step", f"decode {run.engine.settings.slots}"
    batch = 4 * config.rollouts_per_step * (config.data.max_prompt_tokens + 2 * config.rollout.max_new_tokens)
    return (
        ProgramPlan(decode, run.held(decode), 0, decode_temporaries(run), model_flops=program_flops(run, decode)),
        ProgramPlan(train, run.held(train), batch, train_temporaries(run), model_flops=program_flops(run, train)),
    )
