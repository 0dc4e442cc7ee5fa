"""What to change when a plan does not fit: the fields that hold the most, with what each change would free."""

import math

from gvm_jax.models.sharding import divisor
from gvm_jax.planning.planner import Plan, ProgramPlan
from gvm_jax.rollout.pages import least_pages
from gvm_jax.training.batch_sizes import micro_batches

GIB = 2**30


def advice(plan: Plan) -> list[str]:
    """Changes, a line each, those that free most first; nothing where the plan fits."""
    if plan.fits:
        return []
    suggestions: dict[str, float] = {}
    for program in plan.overfull:
        for line, freed in _changes(plan, program):
            suggestions[line] = max(freed, suggestions.get(line, 0.0))
    ordered = sorted(suggestions.items(), key=lambda item: -item[1])
    lines = [f"{line} (frees about {freed / GIB:.1f} GiB a chip)" for line, freed in ordered if freed > 0]
    updates = [program.total for program in plan.overfull if program.name in ("train step", "pilot")]
    if lines and not updates:
        return lines  # what is sampled with is the replica's own, on however many devices
    most = max(updates or [program.total for program in plan.overfull])
    needed = math.ceil(plan.parts.topology.size * most / plan.capacity)
    return [
        *lines,
        f"a larger topology: about {needed} devices of this kind, with mesh.fsdp=-1; --search tries the meshes",
    ]


def _changes(plan: Plan, program: ProgramPlan):
    """(what to change, bytes that it frees) for one program that does not fit."""
    parts = plan.parts
    config, mesh = parts.config, parts.mesh
    over = program.total - plan.capacity
    held = program.held
    state = held["parameters"] + held["optimizer"] + held.get("reference", 0)
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    splits = {axis: divisor(parts.model, axis) for axis in ("fsdp", "tensor")}
    if data > 1 and splits["fsdp"] % (data * fsdp) == 0:
        yield f"--config.mesh.fsdp={data * fsdp} --config.mesh.data=1: shard the state further", state * (1 - 1 / data)
    if held.get("reference"):
        yield "--config.objective.kl_coefficient=0: no reference policy is kept", held["reference"]
    if "KV pages" in held:
        settings = parts.engine.settings
        page = held["KV pages"] / settings.num_pages
        least = least_pages(settings.max_prompt_tokens, settings.max_new_tokens, settings.page_size)
        fewer = max(settings.num_pages - math.ceil(over / page), least)
        if fewer < settings.num_pages:
            slots = max(settings.slots * fewer // settings.num_pages, 1)
            line = f"--config.rollout.pages={fewer} (now {settings.num_pages}) --config.rollout.slots={slots}"
            yield f"{line} (now {settings.slots}): fewer samples at once", page * (settings.num_pages - fewer)
        wider = 2 * parts.tensor
        if math.gcd(parts.topology.host().size, splits["tensor"]) % wider == 0:
            # Heads that a wider replica cannot share out stay whole.
            split = parts.network.num_key_value_heads % wider == 0
            freed = (held["rollout weights"] + held["KV pages"] * split) / 2
            yield (
                f"--config.rollout.tensor={wider} (now {parts.tensor}): more chips share a replica of the model",
                freed,
            )
        if parts.config.rollout.weight_dtype != "int8" and held["rollout weights"]:
            yield "--config.rollout.weight_dtype=int8: sample from rounded weights", held["rollout weights"] / 2
    if program.name in ("train step", "pilot"):
        temporaries = program.temporaries
        # Gradients do not shrink with the batch.
        activations = max(temporaries - 2 * held["parameters"], 0)
        if program.name == "train step":
            micro_batch = config.optimizer.micro_batch
            if config.model.remat != "full":
                yield "--config.model.remat=full: recompute activations", activations * 0.7
            less = [size for size in micro_batches(config, data * fsdp) if size < micro_batch]
            if less:
                smaller = max([size for size in less if size <= micro_batch // 2], default=less[-1])
                freed = activations * (1 - smaller / micro_batch)
                yield f"--config.optimizer.micro_batch={smaller} (now {micro_batch})", freed
        if config.optimizer.logprob_chunk > 32:
            logits = 3 * 4 * config.optimizer.logprob_chunk * parts.network.vocab_size / mesh.shape["tensor"]
            smaller = config.optimizer.logprob_chunk // 2
            yield f"--config.optimizer.logprob_chunk={smaller} (now {2 * smaller})", logits / 2
        if parts.step.allocator.strategy.norms != "none":
            response = config.rollout.max_new_tokens
            block = config.gradient_norms.chunk * response * (2048 + 2 * response) * 4
            if config.gradient_norms.chunk > 1:
                yield f"--config.gradient_norms.chunk=1 (now {config.gradient_norms.chunk})", block / 2
    tensor = mesh.shape["tensor"]
    replica = config.rollout.tensor or 2 * tensor
    possible = fsdp % 2 == 0 and splits["tensor"] % (2 * tensor) == 0 and parts.topology.host().size % replica == 0
    if program.name == "train step" and possible:
        yield (
            f"--config.mesh.tensor={2 * tensor} --config.mesh.fsdp={fsdp // 2}: split each row's activations",
            0.4 * max(program.temporaries - 2 * held["parameters"], 0),
        )
