"""Which sample decodes in which slot on which pages of one replica: the host's side of continuous batching. No JAX."""

import bisect
import collections
import dataclasses

import numpy as np
from jaxtyping import Int

from gvm_jax.rollout.pages import TRASH_PAGE, PagePool, pages_for
from gvm_jax.rollout.rollouts import Samples


@dataclasses.dataclass
class _Group:
    """The samples of one request."""

    tokens: Int[np.ndarray, " P"]
    prompt_id: int
    next_row: int
    next_sample: int
    expected_length: float
    waiting: int  # samples that were never admitted
    unfinished: int
    running: int = 0
    pages: Int[np.ndarray, " n"] | None = None  # the prompt's; None = not computed

    @property
    def cached(self) -> int:
        """Prompt tokens in the cache: the last one is each sample's first input."""
        return len(self.tokens) - 1


@dataclasses.dataclass(frozen=True)
class Request:
    """Consecutive samples of a prompt."""

    tokens: Int[np.ndarray, " P"]
    prompt_id: int
    rows: range  # of `Samples`
    first_sample: int  # index of the first
    expected_length: float  # response tokens to expect; the longest start first


@dataclasses.dataclass(frozen=True)
class PrefillChunk:
    """Tokens whose keys and values must be computed before the next block of decode steps."""

    tokens: Int[np.ndarray, " n"]
    begin: int  # position of the first
    pages: Int[np.ndarray, " m"]  # of the sequence, in order


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the device does next: compute chunks, copy pages, then decode the slots in this order."""

    chunks: list[PrefillChunk]
    copy_from: list[int]
    copy_to: list[int]
    slots: Int[np.ndarray, " n"]


class Scheduler:
    """Admits samples as slots and pages become free, those expected to be longest first.

    A prompt's keys and values are computed once; its samples read them there. A sample's own page table begins with
    the prompt's full pages, then a copy of its last, partly filled one, which takes the sample's own tokens too. Pages
    are handed out a block of steps ahead. When none are left, prompts whose samples all wait lose theirs, then the
    sample admitted last does: it goes back to the head of the queue, and what it had sampled is computed again (one
    chunk, not step by step) when there is room.
    """

    def __init__(self, samples: Samples, slots: int, num_pages: int, page_size: int, max_tokens: int, block_steps: int):
        self.samples, self._block_steps, self._page_size = samples, block_steps, page_size
        self._pool = PagePool(num_pages)
        self._groups: list[_Group] = []
        self._queue: list[tuple] = []  # (priority, group) of those with samples that were never admitted
        self._preempted: collections.deque[tuple[int, int, int, int]] = (
            collections.deque()
        )  # group, row, sample, serial
        self._serial = 0
        self.preemptions = 0
        self.waiting = 0  # samples that were never admitted
        self.expected_tokens = 0.0  # of the samples that have not ended

        def column():
            return np.zeros(slots, np.int32)

        self.active = np.zeros(slots, bool)
        self.group, self.row, self.sample, self.serial = column(), column(), column(), column()
        self.token, self.position, self.limit = column(), column(), column()
        self.page_table = np.full((slots, pages_for(max_tokens, page_size)), TRASH_PAGE, np.int32)
        self._held, self._shared_pages = column(), column()  # entries of the page table: filled; the prompt's

    def request(self, request: Request) -> None:
        """Queues the samples."""
        r, count = request, len(request.rows)
        if not count:
            return
        self._groups.append(
            _Group(r.tokens, r.prompt_id, r.rows.start, r.first_sample, r.expected_length, count, count)
        )
        bisect.insort(self._queue, ((-r.expected_length, -count), len(self._groups) - 1))
        self.waiting += count
        self.expected_tokens += count * max(r.expected_length, 1.0)

    def give(self, most: int) -> Request:
        """Takes back up to `most` samples, at least one, of the prompt that comes last among those that wait."""
        index = self._queue[-1][1]
        group = self._groups[index]
        count = min(most, group.waiting)
        group.waiting -= count
        group.unfinished -= count
        self.waiting -= count
        self.expected_tokens -= count * max(group.expected_length, 1.0)
        if not group.waiting:
            self._queue.pop()
        if not group.unfinished:
            self._release_prompt(group)
        first = group.next_row + group.waiting
        rows, sample = range(first, first + count), group.next_sample + group.waiting
        return Request(group.tokens, group.prompt_id, rows, sample, group.expected_length)

    @property
    def done(self) -> bool:
        """Every sample requested so far has finished."""
        return not self._queue and not self._preempted and not self.active.any()

    @property
    def free_slots(self) -> int:
        """Slots without a sample."""
        return len(self.active) - int(self.active.sum())

    def prompt(self, slot: int) -> _Group:
        """The request that a slot samples."""
        return self._groups[self.group[slot]]

    def plan(self, chunk_tokens: int, batch_tokens: int) -> Plan:
        """Gives every running sample the pages of its next block and admits waiting ones.

        Args:
          chunk_tokens: prompts are computed in chunks of so many tokens ...
          batch_tokens: ... and so many tokens at once: room that is left takes the prompts that come next.
        """
        plan = Plan([], [], [], None)
        self._grow()
        while not self.active.all() and self._admit(plan):
            pass
        used = sum(pages_for(len(chunk.tokens), chunk_tokens) for chunk in plan.chunks) * chunk_tokens
        if used:
            self._look_ahead(plan, -used % batch_tokens // chunk_tokens, chunk_tokens)
        slots = np.flatnonzero(self.active)
        # Longest first: attention reads neighbours together, as far as the longest of them.
        own = self.position[slots] - self._shared_pages[slots] * self._page_size
        return dataclasses.replace(plan, slots=slots[np.argsort(-own, kind="stable")])

    def advance(
        self, slots: Int[np.ndarray, " n"], steps: Int[np.ndarray, " n"], last: Int[np.ndarray, " n"], ended
    ) -> None:
        """The slots sampled so many tokens, the last of them `last`; those that ended are free."""
        self.position[slots] += steps
        self.token[slots] = last
        for slot in slots[ended]:
            group = self.prompt(slot)
            group.unfinished -= 1
            self.expected_tokens -= max(group.expected_length, 1.0)
            self._vacate(slot)

    def _reach(self, slots) -> Int[np.ndarray, " n"]:
        """Tokens in the cache after the next block. The last token of a sequence is never an input."""
        return np.minimum(self.position[slots] + self._block_steps, self.limit[slots] - 1)

    def _grow(self) -> None:
        while True:
            slots = np.flatnonzero(self.active)
            need = np.maximum(pages_for(self._reach(slots), self._page_size) - self._held[slots], 0)
            if need.sum() <= self._pool.num_free:
                break
            if not self._evict():
                self._preempt(slots[np.argmax(self.serial[slots])])
        owners = np.repeat(slots, need)
        entries = self._held[owners] + np.arange(len(owners)) - np.repeat(np.cumsum(need) - need, need)
        self.page_table[owners, entries] = self._pool.allocate(len(owners))
        self._held[slots] += need

    def _admit(self, plan: Plan) -> bool:
        """Starts the next sample, or says that none waits or fits."""
        if self._preempted:
            index, row, sample, serial = self._preempted[0]
        elif self._queue:
            index = self._queue[0][1]
            row, sample, serial = self._groups[index].next_row, self._groups[index].next_sample, self._serial
        else:
            return False
        group, response = self._groups[index], self.samples.response(row)
        position = group.cached + len(response)
        limit = len(group.tokens) + self.samples.max_response
        shared = group.cached // self._page_size
        own = pages_for(min(position + self._block_steps, limit - 1), self._page_size) - shared
        prompt = pages_for(group.cached, self._page_size) if group.pages is None else 0
        while self._pool.num_free < own + prompt + self._reserve():
            if self.active.any() or not self._evict(index):
                return False
        if prompt:
            self._compute_prompt(plan, group)
        slot = int(np.argmin(self.active))
        pages = self._pool.allocate(own)
        self.page_table[slot] = TRASH_PAGE
        self.page_table[slot, :shared] = group.pages[:shared]
        self.page_table[slot, shared : shared + own] = pages
        self._held[slot], self._shared_pages[slot] = shared + own, shared
        if len(response):
            begin = shared * self._page_size
            known = np.concatenate([group.tokens[:-1], group.tokens[-1:], response[:-1]])
            plan.chunks.append(PrefillChunk(known[begin:], begin, self.page_table[slot].copy()))
        elif shared < len(group.pages):
            plan.copy_from.append(int(group.pages[shared]))
            plan.copy_to.append(int(pages[0]))
        self.active[slot] = True
        self.group[slot], self.row[slot], self.sample[slot], self.serial[slot] = index, row, sample, serial
        self.position[slot], self.limit[slot] = position, limit
        self.token[slot] = response[-1] if len(response) else group.tokens[-1]
        group.running += 1
        if self._preempted:
            self._preempted.popleft()
        else:
            self._serial += 1
            self.waiting -= 1
            group.next_row, group.next_sample, group.waiting = row + 1, sample + 1, group.waiting - 1
            if not group.waiting:
                self._queue.pop(0)
        return True

    def _look_ahead(self, plan: Plan, chunks: int, chunk_tokens: int) -> None:
        for _, index in self._queue:
            group = self._groups[index]
            if group.pages is not None:
                continue
            chunks -= pages_for(group.cached, chunk_tokens)
            need = pages_for(group.cached, self._page_size) + pages_for(self._block_steps, self._page_size)
            if chunks < 0 or self._pool.num_free < need + self._reserve():
                break
            self._compute_prompt(plan, group)

    def _compute_prompt(self, plan: Plan, group: _Group) -> None:
        group.pages = self._pool.allocate(pages_for(group.cached, self._page_size))
        plan.chunks.append(PrefillChunk(group.tokens[:-1], 0, group.pages))

    def _reserve(self) -> int:
        """A page for each running sample that may still need one, so that an admission seldom ends in a preemption."""
        slots = np.flatnonzero(self.active)
        return int((self._held[slots] < pages_for(self.limit[slots] - 1, self._page_size)).sum())

    def _evict(self, spared: int = -1) -> bool:
        """Takes the pages of the waiting prompt that comes last; False where no waiting prompt has any."""
        waiting = [index for _, index in self._queue] + [index for index, *_ in self._preempted]
        for index in reversed(waiting):
            group = self._groups[index]
            if group.pages is not None and not group.running and index != spared:
                self._release_prompt(group)
                return True
        return False

    def _preempt(self, slot: int) -> None:
        self._preempted.appendleft((self.group[slot], self.row[slot], self.sample[slot], self.serial[slot]))
        self.preemptions += 1
        self._vacate(slot)

    def _vacate(self, slot: int) -> None:
        group = self.prompt(slot)
        self._pool.release(self.page_table[slot, self._shared_pages[slot] : self._held[slot]])
        self.active[slot] = False
        group.running -= 1
        if not group.unfinished:
            self._release_prompt(group)

    def _release_prompt(self, group: _Group) -> None:
        if group.pages is not None:
            self._pool.release(group.pages)
            group.pages = None
