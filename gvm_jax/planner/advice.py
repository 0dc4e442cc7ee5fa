"""Changes to a config that does not fit: each is built as a run, and an estimate says how much memory it frees."""

import math
from collections.abc import Iterator

from gvm_jax.planner.abstract_run import AbstractRun
from gvm_jax.planner.estimates import decode_temporaries, norm_temporaries, train_temporaries
from gvm_jax.planner.planner import Plan
from gvm_jax.rollout.pages import least_pages
from gvm_jax.training.batch_sizes import micro_batches

GIB = 2**30


def advice(plan: Plan) -> list[str]:
    """Changes, a line each, those that free most first; nothing where the plan fits."""
    if plan.fits:
        return []
    run, freed = plan.run, {}
    before = {program.name: _estimate(run, program.name) for program in plan.overfull}
    for fields, reason in _changes(plan):
        changed = run.changed(fields)
        if changed is not None:
            line = " ".join(f"--config.{name}={_with_present(run, name, value)}" for name, value in fields.items())
            freed[f"{line}: {reason}"] = max(size - _estimate(changed, name) for name, size in before.items())
    ordered = sorted(freed.items(), key=lambda item: -item[1])
    lines = [f"{line} (frees about {size / GIB:.1f} GiB a chip)" for line, size in ordered if size > 0]
    updates = [program.total for program in plan.overfull if program.name in ("train step", "pilot")]
    if lines and not updates:
        return lines  # a replica has its own devices, however many there are
    most = max(updates or [program.total for program in plan.overfull])
    needed = math.ceil(run.topology.size * most / plan.capacity)
    return [
        *lines,
        f"a larger topology: about {needed} devices of this kind, with mesh.fsdp=-1; --search tries the meshes",
    ]


def _estimate(run: AbstractRun, program: str) -> int:
    held = sum(run.held(program).values())
    if program in ("train step", "pilot"):
        return held + train_temporaries(run) + norm_temporaries(run)
    return held + decode_temporaries(run)


def _with_present(run: AbstractRun, field: str, value: object) -> str:
    """`4 (now 8)`; of a mesh, whose fields change together, the value alone."""
    if not isinstance(value, int) or field.startswith("mesh."):
        return str(value)
    present = {"rollout.tensor": run.tensor, "rollout.pages": run.engine.settings.num_pages}
    return f"{value} (now {present.get(field, run.config.to_dict()[field.split('.')[0]][field.split('.')[1]])})"


def _changes(plan: Plan) -> Iterator[tuple[dict[str, object], str]]:
    """(fields and their new values, reason) of everything that may free memory; not all of it can be built."""
    run, config = plan.run, plan.run.config
    data, fsdp, tensor = (run.mesh.shape[axis] for axis in ("data", "fsdp", "tensor"))
    if data > 1:
        yield {"mesh.fsdp": data * fsdp, "mesh.data": 1}, "shard the state further"
    if fsdp % 2 == 0:
        yield {"mesh.tensor": 2 * tensor, "mesh.fsdp": fsdp // 2}, "split each row's activations"
    yield {"objective.kl_coefficient": 0.0}, "keep no reference policy"
    settings, pages = run.engine.settings, run.held()["KV pages"] / run.engine.settings.num_pages
    least = least_pages(settings.max_prompt_tokens, settings.max_new_tokens, settings.page_size)
    over = max(program.total for program in plan.overfull) - plan.capacity
    fewer = max(settings.num_pages - math.ceil(over / pages), least)
    if fewer < settings.num_pages:
        slots = max(settings.slots * fewer // settings.num_pages, 1)
        yield {"rollout.pages": fewer, "rollout.slots": slots}, "sample fewer at once"
    yield {"rollout.tensor": 2 * run.tensor}, "share a replica of the model among more chips"
    yield {"rollout.weight_dtype": "int8"}, "sample from rounded weights"
    yield {"model.remat": "full"}, "recompute activations"
    micro_batch, less = config.optimizer.micro_batch, micro_batches(config, data * fsdp)
    less = [size for size in less if size < micro_batch]
    if less:
        half = max([size for size in less if size <= micro_batch // 2], default=less[-1])
        yield {"optimizer.micro_batch": half}, "compute fewer rows at once"
    if config.optimizer.logprob_chunk > 32:
        yield {"optimizer.logprob_chunk": config.optimizer.logprob_chunk // 2}, "compute fewer logits at once"
    yield {"gradient_norms.chunk": 1}, "measure fewer gradient norms at once"
