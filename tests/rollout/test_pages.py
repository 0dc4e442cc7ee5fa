"""The host's side of the engine: reference counts, and a scheduler that always comes to an end."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_jax.rollout.pages import TRASH_PAGE, PagePool, pages_for
from gvm_jax.rollout.scheduler import Scheduler


def test_shared_pages_are_free_only_after_the_last_release():
    pool = PagePool(5)
    pages = pool.allocate(3)
    assert TRASH_PAGE not in pages and pool.num_free == 1
    pool.share(pages[:2])
    pool.release(pages)
    assert pool.num_free == 2
    pool.release(pages[:2])
    assert pool.num_free == 4
    with pytest.raises(RuntimeError, match="5 pages asked for, 4 free"):
        pool.allocate(5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=12),
    counts=st.data(),
    slots=st.integers(1, 6),
    page_size=st.integers(1, 9),
    spare=st.integers(0, 40),
)
def test_every_sample_runs_once_on_pages_of_its_own(lengths, counts, slots, page_size, spare):
    """A random order of ends: no page is written by two samples, shared pages are read only, and all is freed."""
    rng = np.random.default_rng(0)
    prompts = [np.arange(n) for n in lengths]
    numbers = counts.draw(st.lists(st.integers(0, 5), min_size=len(lengths), max_size=len(lengths)))
    response = 10
    most = pages_for(max(lengths) + response - 1, page_size) + pages_for(max(lengths) - 1, page_size)
    scheduler = Scheduler(prompts, np.array(numbers), 3, slots, 1 + most + spare, page_size, response)
    free_at_start = scheduler._pool.num_free
    seen, prefilled = [], {}
    while not scheduler.done:
        while batch := scheduler.to_prefill(2):
            for group, tokens, pages in batch:
                assert group not in prefilled and len(pages) == pages_for(len(tokens) - 1, page_size)
                prefilled[group] = pages
            scheduler.admit()
        scheduler.admit()
        running = scheduler.running
        assert running, "nothing runs, so nothing will ever be freed"
        writable = []
        for place in running.values():
            length = lengths[place.group]
            assert len(place.pages) == pages_for(length + response - 1, page_size)
            shared = (length - 1) // page_size
            assert place.pages[:shared] == prefilled[place.group][:shared]
            writable += place.pages[shared:]
            if (length - 1) % page_size:
                assert place.copy_from == prefilled[place.group][shared] and place.copy_to == place.pages[shared]
            else:
                assert place.copy_from == place.copy_to == TRASH_PAGE
        assert len(set(writable)) == len(writable)
        slot = rng.choice(list(running))
        seen.append((running[slot].row, running[slot].group, running[slot].sample))
        scheduler.finish(slot)
    rows = [(g, 3 + s) for g, n in enumerate(numbers) for s in range(n)]
    assert sorted(seen) == [(row, *pair) for row, pair in enumerate(rows)]
    assert scheduler._pool.num_free == free_at_start
