"""The plan of a config on a topology: each program's memory, costs and roofline, and those of a whole step."""

import dataclasses
import math
from collections.abc import Callable, Collection

import jax

from gvm_jax.models.sharding import BATCH_AXES
from gvm_jax.planning.compiled import CompiledProgram, compile_program
from gvm_jax.planning.costs import Costs
from gvm_jax.planning.model_flops import Workload, kernel_costs, packed_share, program_flops
from gvm_jax.planning.parts import Parts, replicated_arrays

STATE = ("parameters", "optimizer", "reference", "statistics")
POLICY = ("rollout weights", "KV pages")


@dataclasses.dataclass(frozen=True)
class ProgramPlan:
    """One program on one device; bytes, operations and seconds of one run.

    While it samples a run holds the state and the policy, rollout weights and KV pages. `Trainer.collect` drops
    the policy when the last sample is in, so the train step has the state alone; the pilot program runs in between and
    has both. The code of every program stays loaded.
    """

    name: str
    held: dict[str, int]  # what is on the device anyway, by name
    batch: int  # its other arguments, and results
    temporaries: int  # activations, gradients, buffers of collectives
    code: int  # of all programs
    compile_seconds: float
    fits_alone: bool
    costs: Costs | None  # as compiled, the kernels' added; None where it was not compiled
    model_flops: float  # of all devices

    @property
    def total(self) -> int:
        """Bytes on a device while it runs."""
        return sum(self.held.values()) + self.batch + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least seconds of one run: those of what binds it, with all else hidden behind."""

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        """The largest of them."""
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """What it is."""
        return max(("compute", self.compute), ("memory", self.memory), ("links", self.links), key=lambda x: x[1])[0]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Of a config on a topology."""

    parts: Parts
    workload: Workload
    programs: tuple[ProgramPlan, ...]
    replicated: tuple[tuple[str, int], ...]  # arrays of the train step above 1 MB that every device holds whole

    @property
    def capacity(self) -> float:
        """Bytes of a device."""
        return self.parts.topology.chip.hbm_bytes

    @property
    def overfull(self) -> tuple[ProgramPlan, ...]:
        """Programs that do not fit."""
        return tuple(p for p in self.programs if not p.fits_alone or p.total > self.capacity)

    @property
    def fits(self) -> bool:
        """Whether every program does."""
        return not self.overfull

    def program(self, name: str) -> ProgramPlan | None:
        """By name."""
        return next((p for p in self.programs if p.name == name), None)

    def roofline(self, program: ProgramPlan) -> Roofline | None:
        """Of one run; None where it was not compiled."""
        if program.costs is None:
            return None
        chip, costs = self.parts.topology.chip, program.costs
        return Roofline(
            costs.flops / chip.flops, costs.bytes / chip.hbm_bandwidth, costs.ring_bytes / chip.link_bandwidth
        )

    def runs(self, program: ProgramPlan) -> float:
        """How often a step runs it on a device, with every replica as busy as the others.

        The train step and the pilot program skip empty micro-batches: their costs are those of samples that fill a row
        each, and the share counts that shorter ones fill, packed.

        All slots are taken to be busy where there are samples enough: the narrower batches of a step's last and
        longest samples are left out.
        """
        parts, config, step = self.parts, self.parts.config, self.parts.step
        if program.name in ("train step", "pilot"):
            return packed_share(parts, self.workload)
        if program.name == "prefill":
            prompts = config.prompts_per_step * (2 if step.pilot_rollouts else 1)
            return math.ceil(prompts * self.workload.prompt_tokens / (parts.replicas * config.rollout.prefill_tokens))
        if program.name == f"decode {parts.width}":
            # A sample is in one slot: however many there are, its own tokens come one after another.
            waves = max(config.rollouts_per_step / (parts.replicas * parts.width), 1.0)
            return math.ceil(waves * self.workload.response_tokens / config.rollout.block_steps)
        if program.name == "copy pages":  # once for each sample, `slots` at a time
            return math.ceil(config.rollouts_per_step / (parts.replicas * parts.engine.settings.slots))
        return 0.0

    @property
    def step_seconds(self) -> float | None:
        """The least seconds of a step; None where a program that it runs has no costs."""
        seconds = 0.0
        for program in self.programs:
            runs = self.runs(program)
            roofline = self.roofline(program)
            if runs and roofline is None:
                return None
            seconds += runs * roofline.seconds if runs else 0.0
        return seconds

    @property
    def tokens_per_second_per_chip(self) -> float | None:
        """Sampled tokens of a step over its seconds."""
        if not self.step_seconds:
            return None
        tokens = self.parts.config.rollouts_per_step * self.workload.response_tokens
        return tokens / self.step_seconds / (self.parts.topology.size / self.parts.topology.chip.per_chip)


def make_plan(
    parts: Parts,
    workload: Workload,
    show: Callable[[str], None] = lambda line: None,
    only: Collection[str] = (),
) -> Plan:
    """Compiles the programs, or the ones named in `only`, one after another; `show` is told of each.

    GPU programs cannot be compiled without a GPU: there the plan has two rows, of estimates.
    """
    state = parts.step.abstract_state
    replicated = tuple(replicated_arrays((state.params, state.opt_state, state.reference)))
    if not parts.topology.compiles:
        return Plan(parts, workload, tuple(_estimates(parts, workload)), replicated)
    show(f"tracing the programs of {parts.config.model.path}")
    lowered = {name: program for name, program in parts.lower().items() if not only or name in only}
    done = []
    for number, (name, program) in enumerate(lowered.items(), 1):
        show(f"compiling {number}/{len(lowered)}: {name}")
        compiled = compile_program(
            name, program, parts.topology.size, loop_runs(parts, name), parts.engine.abstract_policy["cache"]
        )
        done.append(compiled)
        show(f"  {compiled.seconds:.1f} s" + ("" if compiled.fits_alone else ": does not fit on the device by itself"))
    code = sum(program.code for program in done)
    return Plan(parts, workload, tuple(_program_plan(parts, workload, p, code) for p in done), replicated)


def loop_runs(parts: Parts, name: str) -> int:
    """How often a program's loops run whose end depends on data.

    A decode block's ends when every sequence has ended; the train step's over chunks of log-probabilities when all
    response tokens of a device's rows are done.
    """
    config = parts.config
    if name.startswith("decode"):
        return config.rollout.block_steps
    if name != "train step":
        return 1
    shards = math.prod(parts.mesh.shape[axis] for axis in BATCH_AXES)
    tokens = config.optimizer.micro_batch // shards * config.rollout.max_new_tokens
    return -(-tokens // config.optimizer.logprob_chunk)


def _program_plan(parts: Parts, workload: Workload, compiled: CompiledProgram, code: int) -> ProgramPlan:
    name, held = compiled.name, parts.held()
    if name == "train step":
        held, passed = {part: held[part] for part in STATE}, STATE
    else:
        passed = {"pilot": ("parameters", "statistics"), "copy pages": ("KV pages",)}.get(name, POLICY)
        if name not in ("pilot", "copy pages") and not held["rollout weights"]:
            passed = ("parameters", "KV pages")  # the weights are the training's own
    given = sum(held[part] for part in passed)
    temporaries, batch = compiled.temporaries, max(compiled.arguments - given, 0) + compiled.results
    if not compiled.fits_alone:  # the compiler names one sum
        temporaries, batch = max(temporaries - given, 0), 0
    costs = compiled.costs
    if costs is not None:
        flops, read = kernel_costs(parts, name, workload)
        costs = dataclasses.replace(costs, flops=costs.flops + flops, bytes=costs.bytes + read)
    return ProgramPlan(
        name, held, batch, temporaries, code, compiled.seconds, compiled.fits_alone, costs,
        program_flops(parts, name, workload),
    )  # fmt: skip


def _estimates(parts: Parts, workload: Workload) -> list[ProgramPlan]:
    """Two rows for devices without a compiler: arrays exactly as they are laid out, temporaries by formula."""
    held = parts.held()
    slots = parts.engine.settings.slots
    config, network = parts.config, parts.network
    batch = 4 * config.rollouts_per_step * (config.data.max_prompt_tokens + 2 * config.rollout.max_new_tokens)
    tensor = parts.tensor
    decode = slots * network.vocab_size * 4 * 3 // tensor  # logits in float32, their sort keys and noise
    widest = f"decode {slots}"
    rows = [
        ProgramPlan(widest, held, 0, decode, 0, 0.0, True, None, program_flops(parts, widest, workload)),
        ProgramPlan(
            "train step", {part: held[part] for part in STATE}, batch, train_temporaries(parts), 0, 0.0, True, None,
            program_flops(parts, "train step", workload),
        ),
    ]  # fmt: skip
    return rows


def train_temporaries(parts: Parts) -> int:
    """A formula for the bytes of the train step's temporaries on a device, where nothing compiles it.

    Gradients in float32, one micro-batch's own, in which those of the layers have the compute dtype, and the layers in
    it; for each row of a micro-batch on the device the residual stream of every layer (with full remat; else a whole
    layer's activations) and one layer's activations; and the logits of a chunk three times in float32. Where rows are
    split over devices the head is gathered: its kernel and its gradient in float32.
    """
    config, network, mesh = parts.config, parts.network, parts.mesh
    width = parts.model.dtype.itemsize
    tensor, shards = mesh.shape["tensor"], mesh.shape["data"] * mesh.shape["fsdp"]
    samples_per_row = config.optimizer.samples_per_row
    rows = max(1, config.optimizer.micro_batch // (shards * samples_per_row))
    length = samples_per_row * (config.data.max_prompt_tokens + config.rollout.max_new_tokens)
    d, layers = network.hidden_size, network.num_hidden_layers
    heads = (network.num_attention_heads + 2 * network.num_key_value_heads) * network.head_dim
    layer = length * width * (4 * d + 2 * heads + 3 * network.intermediate_size) // tensor
    scores = {  # the kernels hold none; cuDNN's takes a mask
        "xla": 3 * min(256, length) * length * network.num_attention_heads * 4 // tensor,
        "cudnn": 2 * length**2,
        "splash": 0,
    }[parts.model.attention]
    saved = layers * (length * d * width if config.model.remat == "full" else layer)
    logits = 3 * config.optimizer.logprob_chunk * network.vocab_size * 4 // tensor
    parameters = parts.held()["parameters"]
    head = 2 * 4 * d * network.vocab_size // tensor if shards > 1 else 0
    stacked = 4 * sum(x.size for x in jax.tree.leaves(parts.model.abstract_params["layers"]))
    share = stacked / (4 * sum(x.size for x in jax.tree.leaves(parts.model.abstract_params)))
    whole = stacked // layers // tensor
    gradients = parameters * (2 - share + 2 * share * width / 4)
    return int(gradients + 2 * whole + head + logits + rows * (saved + 2 * layer + scores))
