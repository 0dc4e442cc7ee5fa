"""A plan as tables and lines for a person."""

import jax
from rich.console import Console
from rich.table import Table

from gvm_jax.planning.advice import advice
from gvm_jax.planning.planner import STATE, Plan, ProgramPlan

GIB, MIB = 2**30, 2**20
TARGET = 1.4  # compiled operations over those of the model, with remat


def show(plan: Plan, console: Console) -> None:
    """Print all of it."""
    console.print(_header(plan))
    console.print(memory_table(plan))
    if plan.parts.topology.compiles:
        console.print(cost_table(plan))
        for table in collective_tables(plan):
            console.print(table)
    for line in summary(plan):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _header(plan: Plan) -> str:
    parts, settings = plan.parts, plan.parts.engine.settings
    parameters = sum(x.size for x in jax.tree.leaves(parts.model.abstract_params))
    mesh = " x ".join(f"{axis} {size}" for axis, size in parts.mesh.shape.items())
    return (
        f"{parts.config.model.path}: {_counted(parameters)} parameters, {parts.model.dtype.name}; "
        f"{parts.topology.name}, {parts.topology.size} devices, mesh {mesh};\n"
        f"{parts.replicas} rollout replicas of {parts.tensor} device(s) with {settings.slots} slots and "
        f"{settings.num_pages} pages each, attention {parts.kernels}; trained with attention {parts.model.attention}"
    )


def seconds(value: float) -> str:
    """`73.5`, `0.00192`."""
    return f"{value:.1f}" if value >= 1 else f"{value:.3g}"


def _counted(parameters: int) -> str:
    """`1.54 G`, `0.4 M`."""
    return f"{parameters / 1e9:.2f} G" if parameters >= 1e8 else f"{parameters / 1e6:.1f} M"


def memory_table(plan: Plan) -> Table:
    """GiB on a device, or MiB of a tiny model; a row a program."""
    compiled = plan.parts.topology.compiles
    unit, name = (GIB, "GiB") if max(program.total for program in plan.programs) >= GIB / 2 else (MIB, "MiB")
    table = Table(title=f"{name} of memory on a chip while a program runs" + ("" if compiled else " (estimated)"))
    table.add_column("program")
    columns = [*STATE[:3], "rollout weights", "KV pages"]
    for column in (*columns, "batch", "temporaries", "code", "sum", "of the chip", ""):
        table.add_column(column, justify="right")
    for program in plan.programs:
        batch = program.batch + program.held.get("statistics", 0)
        sizes = [program.held.get(column, 0) for column in columns]
        numbers = [*sizes, batch, program.temporaries, program.code, program.total]
        verdict = "does not fit" if program in plan.overfull else "fits"
        share = f"{100 * program.total / plan.capacity:.0f} %"
        table.add_row(program.name, *(f"{x / unit:.2f}" if x else "" for x in numbers), share, verdict)
    return table


def cost_table(plan: Plan) -> Table:
    """Operations, traffic and time of one run, a row a program."""
    table = Table(title="One run of a program, on a chip")
    table.add_column("program")
    for column in (
        "TFLOP compiled", "of the model", "ratio", "GB memory", "GB links", "roofline ms", "bound by", "runs a step",
        "compiled in s",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for program in plan.programs:
        roofline = plan.roofline(program)
        if roofline is None:
            table.add_row(program.name, *[""] * 8, f"{program.compile_seconds:.0f}")
            continue
        costs, model = program.costs, program.model_flops / plan.parts.topology.size
        table.add_row(
            program.name, f"{costs.flops / 1e12:.3g}", f"{model / 1e12:.3g}" if model else "",
            f"{costs.flops / model:.2f}" if model else "", f"{costs.bytes / 1e9:.3g}", f"{costs.ring_bytes / 1e9:.3g}",
            f"{roofline.seconds * 1e3:.4g}", roofline.bound, f"{plan.runs(program):.2f}".removesuffix(".00"),
            f"{program.compile_seconds:.0f}",
        )  # fmt: skip
    return table


def collective_tables(plan: Plan, most: int = 8) -> list[Table]:
    """The largest collectives of the train step and of the decode block that a step runs most."""
    shown = "train step", f"decode {plan.parts.width}"
    tables = [_collectives(p, most) for p in plan.programs if p.name in shown and p.costs]
    return [table for table in tables if table.row_count]


def _collectives(program: ProgramPlan, most: int) -> Table:
    collectives = program.costs.collectives
    table = Table(title=f"Collectives of a {program.name}: {sum(c.count for c in collectives):.0f} runs")
    for column in ("kind", "array", "chips", "MB each", "runs", "GB passed on"):
        table.add_column(column, justify="right" if column not in ("kind", "array") else "left")
    for c in collectives[:most]:
        table.add_row(
            c.kind, c.shape.replace("[", r"\["), str(c.group), f"{c.bytes / 1e6:.3g}", f"{c.count:.0f}",
            f"{c.ring_bytes / 1e9:.3g}",
        )  # fmt: skip
    rest = collectives[most:]
    if rest:
        table.add_row(
            f"{len(rest)} other sizes", "", "", "", f"{sum(c.count for c in rest):.0f}",
            f"{sum(c.ring_bytes for c in rest) / 1e9:.3g}",
        )  # fmt: skip
    return table


def summary(plan: Plan) -> list[str]:
    """What follows from the tables, a line each; the last one says whether it fits."""
    parts, lines = plan.parts, []
    workload = f"{plan.workload.prompt_tokens:.0f} prompt and {plan.workload.response_tokens:.0f} response tokens"
    if not parts.topology.compiles:
        lines.append(
            "estimate: programs for GPUs cannot be compiled without one. Parameters, optimizer, reference, rollout "
            "weights and KV pages are laid out exactly; temporaries are a formula's, no time is given"
        )
    if plan.step_seconds:
        lines.append(
            f"step: at least {seconds(plan.step_seconds)} s by the roofline, {plan.tokens_per_second_per_chip:,.0f} "
            f"sampled tokens/s a chip, taking {workload} a sample (--prompt_tokens, --response_tokens)"
        )
    train = plan.program("train step")
    if train and train.costs:
        ratio = train.costs.flops * parts.topology.size / train.model_flops
        lines.append(
            f"operations: the compiled train step's are {ratio:.2f} x the model's (target {TARGET}); loops are counted "
            "as often as they run, attention kernels by hand"
        )
    if plan.replicated:
        arrays = ", ".join(f"{path} {size / 1e6:.1f} MB" for path, size in plan.replicated[:6])
        more = f" and {len(plan.replicated) - 6} more" if len(plan.replicated) > 6 else ""
        lines.append(f"replicated: every chip holds {arrays}{more} whole; raise mesh.fsdp")
    else:
        lines.append("replicated: no array of the train step above 1 MB")
    for program in plan.overfull:
        lines.append(
            f"{program.name} does not fit: needs {program.total / GIB:.2f} GiB of {plan.capacity / GIB:.2f} GiB"
        )
    lines += [f"change: {line}" for line in advice(plan)]
    most = max(plan.programs, key=lambda p: p.total)
    if plan.fits:
        lines.append(
            f"fits: {most.total / GIB:.2f} of {plan.capacity / GIB:.2f} GiB a chip, most in the program {most.name!r}"
        )
    return lines
