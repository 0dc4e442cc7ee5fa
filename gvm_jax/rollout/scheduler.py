"""Which sample runs in which slot on which pages: the host's side of continuous batching. Knows no JAX."""

import collections
import dataclasses

import numpy as np

from gvm_jax.rollout.pages import TRASH_PAGE, PagePool, pages_for


@dataclasses.dataclass
class _Group:
    """The samples of one prompt."""

    tokens: np.ndarray
    waiting: int  # samples not admitted yet
    next_row: int
    next_sample: int
    prompt_pages: list[int] | None = None  # None = not prefilled


@dataclasses.dataclass(frozen=True)
class Placement:
    """A sample that was given a slot."""

    slot: int
    row: int
    group: int
    sample: int
    pages: list[int]
    copy_from: int
    copy_to: int


class Scheduler:
    """Admits samples in order as slots and pages become free.

    The cache holds all but the last token of a prompt once; its samples share the full pages and copy the last, partly
    filled one. A sample is admitted when every page that it may ever need is free, so a running sample never waits.
    """

    def __init__(
        self,
        prompts,
        counts,
        first_sample: int,
        slots: int,
        num_pages: int,
        page_size: int,
        max_response: int,
    ):
        first_rows = np.cumsum(counts) - counts
        self._groups = [
            _Group(tokens, int(n), int(row), first_sample)
            for tokens, n, row in zip(prompts, counts, first_rows, strict=True)
        ]
        self._queue = collections.deque(i for i, group in enumerate(self._groups) if group.waiting)
        self._pool = PagePool(num_pages)
        self._page_size, self._max_response = page_size, max_response
        self._running: dict[int, Placement] = {}
        self._free_slots = list(range(slots - 1, -1, -1))
        self._most_pages = max((self._sequence_pages(group) for group in self._groups), default=0)

    @property
    def running(self) -> dict[int, Placement]:
        """The samples in flight, by slot."""
        return self._running

    @property
    def done(self) -> bool:
        """Every sample was admitted and finished."""
        return not self._queue and not self._running

    def to_prefill(self, batch: int) -> list[tuple[int, np.ndarray, list[int]]]:
        """(group, prompt tokens, pages) of the next prompts to prefill.

        Empty as long as the next sample's prompt is prefilled or no slot is free; otherwise up to `batch` prompts, as
        a whole batch costs what one prompt costs. Room for one more sequence always stays, so that prompts that
        wait can never block the samples.
        """
        if not self._free_slots or not self._queue or self._groups[self._queue[0]].prompt_pages is not None:
            return []
        batch_of = []
        for index in self._queue:
            group = self._groups[index]
            need = pages_for(len(group.tokens) - 1, self._page_size)
            if len(batch_of) == batch or self._pool.num_free < need + self._most_pages:
                break
            if group.prompt_pages is None:
                group.prompt_pages = self._pool.allocate(need)
                batch_of.append((index, group.tokens, group.prompt_pages))
        return batch_of

    def admit(self) -> list[Placement]:
        """Samples that start now."""
        placements = []
        while self._queue and self._free_slots:
            index = self._queue[0]
            group = self._groups[index]
            if group.prompt_pages is None:
                break
            shared = group.prompt_pages[: (len(group.tokens) - 1) // self._page_size]
            need = self._sequence_pages(group) - len(shared)
            if self._pool.num_free < need:
                break
            own = self._pool.allocate(need)
            self._pool.share(shared)
            partial = group.prompt_pages[len(shared) :]
            placement = Placement(
                slot=self._free_slots.pop(),
                row=group.next_row,
                group=index,
                sample=group.next_sample,
                pages=shared + own,
                copy_from=partial[0] if partial else TRASH_PAGE,
                copy_to=own[0] if partial else TRASH_PAGE,
            )
            self._running[placement.slot] = placement
            placements.append(placement)
            group.waiting, group.next_row, group.next_sample = (
                group.waiting - 1, group.next_row + 1, group.next_sample + 1,
            )  # fmt: skip
            if not group.waiting:
                self._pool.release(group.prompt_pages)
                self._queue.popleft()
        return placements

    def finish(self, slot: int) -> None:
        """The sample in `slot` ended: its slot and pages are free."""
        self._pool.release(self._running.pop(slot).pages)
        self._free_slots.append(slot)

    def _sequence_pages(self, group: _Group) -> int:
        # The last sampled token is never an input, so its keys and values need no place.
        return pages_for(len(group.tokens) + self._max_response - 1, self._page_size)
