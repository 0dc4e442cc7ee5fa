"""A plan as tables and lines for a person."""

import io

import jax
from rich.console import Console
from rich.table import Table

from gvm_jax.planner.advice import advice
from gvm_jax.planner.planner import Plan, ProgramPlan

GIB, MIB = 2**30, 2**20
TARGET = 1.4  # compiled operations over those of the model, with remat
MOST_COLLECTIVES, MOST_ARRAYS = 8, 6  # that are shown by name


def render(plan: Plan) -> str:
    """All of it."""
    console = Console(file=io.StringIO(), width=250)
    tables = [memory_table(plan)]
    if plan.run.topology.compiles:
        tables += [cost_table(plan), *collective_tables(plan)]
    for table in tables:
        console.print(table)
    return "\n".join([_header(plan), console.file.getvalue().rstrip(), *summary(plan)])


def _header(plan: Plan) -> str:
    run, settings = plan.run, plan.run.engine.settings
    count = sum(x.size for x in jax.tree.leaves(run.model.abstract_params))
    parameters = f"{count / 1e9:.2f} G" if count >= 1e8 else f"{count / 1e6:.1f} M"
    mesh = " x ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    return (
        f"{run.config.model.path}: {parameters} parameters, {run.model.dtype.name}; "
        f"{run.topology.name}, {run.topology.size} devices, mesh {mesh};\n"
        f"{run.replicas} rollout replicas of {run.tensor} device(s) with {settings.slots} slots and "
        f"{settings.num_pages} pages each, attention {run.kernels}; trained with attention {run.model.attention}"
    )


def seconds(value: float) -> str:
    """`73.5`, `0.00192`."""
    return f"{value:.1f}" if value >= 1 else f"{value:.3g}"


def _table(title: str, *columns: str) -> Table:
    """Columns of texts on the left, of numbers on the right."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in ("program", "kind", "array") else "right")
    return table


def memory_table(plan: Plan) -> Table:
    """GiB on a device, or MiB of a tiny model; a row a program."""
    unit, name = (GIB, "GiB") if max(program.total for program in plan.programs) >= GIB / 2 else (MIB, "MiB")
    estimated = "" if plan.run.topology.compiles else " (estimated)"
    columns = ("parameters", "optimizer", "reference", "rollout weights", "KV pages")
    table = _table(
        f"{name} of memory on a chip while a program runs{estimated}",
        "program", *columns, "batch", "temporaries", "code", "sum", "of the chip", "",
    )  # fmt: skip
    for program in plan.programs:
        batch = program.batch + program.held["statistics"]
        sizes = [program.held.get(column, 0) for column in columns]
        numbers = [*sizes, batch, program.temporaries, program.code, program.total]
        verdict = "does not fit" if program in plan.overfull else "fits"
        share = f"{100 * program.total / plan.capacity:.0f} %"
        table.add_row(program.name, *(f"{x / unit:.2f}" if x else "" for x in numbers), share, verdict)
    return table


def cost_table(plan: Plan) -> Table:
    """Operations, traffic and time of one run, a row a program."""
    table = _table(
        "One run of a program, on a chip", "program", "TFLOP compiled", "of the model", "ratio", "GB memory",
        "GB links", "roofline ms", "bound by", "runs a step",
    )  # fmt: skip
    for program in plan.programs:
        costs, model, cells = program.costs, program.model_flops / plan.run.topology.size, [""] * 8
        if costs is not None:
            least, bound = plan.roofline(program)
            cells = [
                f"{costs.flops / 1e12:.3g}", f"{model / 1e12:.3g}" if model else "",
                f"{costs.flops / model:.2f}" if model else "", f"{costs.bytes / 1e9:.3g}",
                f"{costs.ring_bytes / 1e9:.3g}", f"{least * 1e3:.4g}", bound,
                f"{plan.runs(program):.2f}".removesuffix(".00"),
            ]  # fmt: skip
        table.add_row(program.name, *cells)
    return table


def collective_tables(plan: Plan) -> list[Table]:
    """The largest collectives of the train step and of the decode block that a step runs most."""
    shown = "train step", f"decode {plan.run.width}"
    return [_collectives(p) for p in plan.programs if p.name in shown and p.costs and p.costs.collectives]


def _collectives(program: ProgramPlan) -> Table:
    collectives = program.costs.collectives
    title = f"Collectives of a {program.name}: {sum(c.count for c in collectives):.0f} runs"
    table = _table(title, "kind", "array", "chips", "MB each", "runs", "GB passed on")
    for c in collectives[:MOST_COLLECTIVES]:
        array, size = c.shape.replace("[", r"\["), f"{c.bytes / 1e6:.3g}"
        table.add_row(c.kind, array, str(c.group), size, f"{c.count:.0f}", f"{c.ring_bytes / 1e9:.3g}")
    if rest := collectives[MOST_COLLECTIVES:]:
        runs, passed_on = sum(c.count for c in rest), sum(c.ring_bytes for c in rest)
        table.add_row(f"{len(rest)} other sizes", "", "", "", f"{runs:.0f}", f"{passed_on / 1e9:.3g}")
    return table


def summary(plan: Plan) -> list[str]:
    """Conclusions from the tables, a line each; the last one says whether it fits."""
    run, lines, arrays = plan.run, [], plan.replicated
    if not run.topology.compiles:
        lines.append(
            "estimate: programs for GPUs cannot be compiled without one. Parameters, optimizer, reference, rollout "
            "weights and KV pages are laid out exactly; temporaries are a formula's, no time is given"
        )
    if plan.step_seconds:
        lines.append(
            f"step: at least {seconds(plan.step_seconds)} s by the roofline, {plan.tokens_per_second_per_chip:,.0f} "
            f"sampled tokens/s a chip, taking {run.prompt_tokens:.0f} prompt and {run.response_tokens:.0f} response "
            "tokens a sample (--prompt_tokens, --response_tokens)"
        )
    if (train := plan.program("train step")) and train.costs:
        ratio = train.costs.flops * run.topology.size / train.model_flops
        lines.append(
            f"operations: the compiled train step's are {ratio:.2f} x the model's (target {TARGET}); loops are counted "
            "as often as they run, attention kernels by hand"
        )
    if arrays:
        named = ", ".join(f"{path} {size / 1e6:.1f} MB" for path, size in arrays[:MOST_ARRAYS])
        more = f" and {len(arrays) - MOST_ARRAYS} more" if len(arrays) > MOST_ARRAYS else ""
        lines.append(f"replicated: every chip holds {named}{more} whole; raise mesh.fsdp")
    else:
        lines.append("replicated: no array of the train step above 1 MB")
    capacity = f"{plan.capacity / GIB:.2f} GiB"
    lines += [f"{p.name} does not fit: needs {p.total / GIB:.2f} GiB of {capacity}" for p in plan.overfull]
    lines += [f"change: {line}" for line in advice(plan)]
    if plan.fits:
        most = max(plan.programs, key=lambda program: program.total)
        lines.append(f"fits: {most.total / GIB:.2f} of {capacity} a chip, most in the program {most.name!r}")
    return lines
