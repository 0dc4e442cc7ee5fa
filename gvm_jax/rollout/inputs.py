"""What the programs are called with, as host arrays of fixed shapes: from the scheduler's plans, filled up."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int

from gvm_jax.rollout.device import DecodeBatch
from gvm_jax.rollout.paged_attention import make_tiles
from gvm_jax.rollout.pages import TRASH_PAGE, pages_for
from gvm_jax.rollout.scheduler import Plan, PrefillChunk, Scheduler
from gvm_jax.rollout.settings import PREFILL_CHUNK, RolloutSettings


def make_calls(
    chunks: Sequence[PrefillChunk], settings: RolloutSettings
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Tokens, positions and page tables of prefill calls: rows of `PREFILL_CHUNK` tokens. At least one call."""
    rows = pages_for(settings.prefill_tokens, PREFILL_CHUNK)
    tokens, positions, tables = [], [], []
    for chunk in chunks:
        for begin in range(0, len(chunk.tokens), PREFILL_CHUNK):
            part = chunk.tokens[begin : begin + PREFILL_CHUNK]
            tokens.append(np.pad(part, (0, PREFILL_CHUNK - len(part))))
            at = chunk.begin + begin + np.arange(PREFILL_CHUNK)
            positions.append(np.where(np.arange(PREFILL_CHUNK) < len(part), at, -1))
            tables.append(chunk.pages)
    calls = []
    for begin in range(0, max(len(tokens), 1), rows):
        call = np.zeros((rows, PREFILL_CHUNK), np.int32), np.full((rows, PREFILL_CHUNK), -1, np.int32)
        # A kernel may take a short chunk for a whole one: its table reaches as far.
        table = np.full(
            (rows, pages_for(settings.max_tokens + PREFILL_CHUNK, settings.page_size)), TRASH_PAGE, np.int32
        )
        for i in range(len(tokens[begin : begin + rows])):
            call[0][i], call[1][i] = tokens[begin + i], positions[begin + i]
            table[i, : len(tables[begin + i])] = tables[begin + i]
        calls.append((*call, table))
    return calls


def make_copies(plan: Plan, settings: RolloutSettings) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, " S"]]:
    """Pages to copy from and to; unused entries copy the trash page to itself."""
    pad = settings.slots - len(plan.copy_to)
    source, target = (
        np.pad(np.array(pages, np.int32), (0, pad), constant_values=TRASH_PAGE)
        for pages in (plan.copy_from, plan.copy_to)
    )
    return source, target


def make_batch(
    scheduler: Scheduler, slots: Int[np.ndarray, " n"], width: int, settings: RolloutSettings
) -> DecodeBatch:
    """The slots' sequences in this order, filled up with idle rows."""
    idle = width - len(slots)

    def column(values, fill=0):
        return np.pad(np.asarray(values, np.int32), (0, idle), constant_values=fill)

    groups = [scheduler.prompt(slot) for slot in slots]
    shared = column([group.cached for group in groups])
    prompt_tables = np.full(
        (width, pages_for(settings.max_prompt_tokens - 1, settings.page_size)), TRASH_PAGE, np.int32
    )
    for i, group in enumerate(groups):
        prompt_tables[i, : len(group.pages)] = group.pages
    return DecodeBatch(
        token=column(scheduler.token[slots]),
        position=column(scheduler.position[slots], -1),
        limit=column(scheduler.limit[slots]),
        prompt_id=column([group.prompt_id for group in groups]),
        sample=column(scheduler.sample[slots]),
        page_table=np.pad(scheduler.page_table[slots], ((0, idle), (0, 0)), constant_values=TRASH_PAGE),
        shared=shared,
        tiles=make_tiles(column(scheduler.group[slots], -1), prompt_tables, shared),
    )


def stack(trees: Sequence):
    """One tree of host arrays from those of all replicas."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
