"""The host's side of the engine against a model of the device: a store of pages that holds tokens instead of keys."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_jax.rollout.pages import TRASH_PAGE, PagePool, least_pages, pages_for
from gvm_jax.rollout.rollouts import Samples
from gvm_jax.rollout.scheduler import Request, Scheduler

STOP = 99


def test_the_pool_hands_out_each_page_once():
    pool = PagePool(6)
    pages = pool.allocate(3)
    others = pool.allocate(2)
    assert sorted([*pages, *others]) == [1, 2, 3, 4, 5] and pool.num_free == 0
    with pytest.raises(RuntimeError, match="1 pages asked for, 0 free"):
        pool.allocate(1)
    pool.release(pages)
    assert sorted(pool.allocate(3)) == sorted(pages)


class Device:
    """Pages of tokens, and the next token of each sample: a function of its row and position."""

    def __init__(self, num_pages, page_size):
        self.store, self.page_size = np.full((num_pages, page_size), -1), page_size

    def write(self, table, position, token):
        page = table[position // self.page_size]
        assert page != TRASH_PAGE, "a token of a live sequence has no page"
        self.store[page, position % self.page_size] = token

    def read(self, table, length):
        return self.store[table].reshape(-1)[:length]

    @staticmethod
    def sample(row, position):
        value = (row * 7919 + position * 104729) % 23
        return STOP if value == 0 else value


def ask(scheduler, tokens, prompt_id, count, first_sample, expected_length):
    rows = scheduler.samples.add(count)
    scheduler.request(Request(tokens, prompt_id, rows, first_sample, expected_length))
    return rows


def decode(device, scheduler, slots, steps):
    """A block of steps as the decode program runs it: rows that end stay idle."""
    tokens = np.full((len(slots), steps), -1)
    for i, slot in enumerate(slots):
        group, position, token = scheduler.prompt(slot), scheduler.position[slot], scheduler.token[slot]
        table, row = scheduler.page_table[slot], scheduler.row[slot]
        for step in range(steps):
            device.write(table, position, token)
            known = np.concatenate([group.tokens, scheduler.samples.response(row), tokens[i, :step]])
            np.testing.assert_array_equal(device.read(table, position + 1), known)
            np.testing.assert_array_equal(device.read(group.pages, group.cached), group.tokens[:-1])
            token = tokens[i, step] = device.sample(row, position)
            position += 1
            if token == STOP or position + 1 >= scheduler.limit[slot]:
                break
    return tokens


def run(scheduler, device, steps, on_ended=lambda row: None):
    admitted = []
    for _ in range(10_000):
        if scheduler.done:
            return admitted
        plan = scheduler.plan(4, 16)
        assert len(plan.slots), "nothing runs, so nothing will ever be freed"
        admitted += [row for row in scheduler.row[plan.slots] if row not in admitted]
        for chunk in plan.chunks:
            for i, token in enumerate(chunk.tokens):
                device.write(chunk.pages, chunk.begin + i, token)
        for source, target in zip(plan.copy_from, plan.copy_to, strict=True):
            device.store[target] = device.store[source]
        rows = scheduler.row[plan.slots]
        tokens = decode(device, scheduler, plan.slots, steps)
        count = scheduler.samples.append(rows, tokens, np.zeros(tokens.shape, np.float32))
        last = tokens[np.arange(len(rows)), count - 1]
        ended = (last == STOP) | (scheduler.samples.lengths[rows] == scheduler.samples.max_response)
        scheduler.advance(plan.slots, count, last, ended)
        for row in rows[ended]:
            on_ended(row)
    raise AssertionError("the scheduler does not come to an end")


def expected(row, prompt_length, max_response):
    response = []
    while len(response) < max_response and STOP not in response:
        response.append(Device.sample(row, prompt_length - 1 + len(response)))
    return response


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), slots=st.integers(1, 6), page_size=st.integers(1, 9), steps=st.integers(1, 5))
def test_every_sample_is_decoded_whole_whatever_the_pool(data, slots, page_size, steps):
    """From the least pool that can work to a roomy one: each token is read and written where it belongs."""
    lengths = data.draw(st.lists(st.integers(2, 20), min_size=1, max_size=8))
    counts = data.draw(st.lists(st.integers(0, 5), min_size=len(lengths), max_size=len(lengths)))
    spare = data.draw(st.integers(0, 30))
    max_response = 11
    num_pages = least_pages(max(lengths), max_response, page_size) + spare
    scheduler = Scheduler(Samples(max_response), slots, num_pages, page_size, max(lengths) + max_response, steps)
    free = scheduler._pool.num_free
    rng = np.random.default_rng(0)
    row_lengths = []
    for i, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        ask(scheduler, rng.integers(100, 200, length), i, count, 0, float(rng.integers(3)))
        row_lengths += [length] * count
    run(scheduler, Device(num_pages, page_size), steps)
    for row, length in enumerate(row_lengths):
        assert scheduler.samples.response(row).tolist() == expected(row, length, max_response)
    assert scheduler._pool.num_free == free, "pages leak"


def test_pressure_preempts_the_youngest_and_counts_it():
    samples = Samples(40)
    scheduler = Scheduler(samples, 4, least_pages(4, 40, 4) + 2, 4, 44, 2)
    ask(scheduler, np.arange(100, 104), 0, 4, 0, 0.0)
    admitted = run(scheduler, Device(100, 4), 2)
    assert scheduler.preemptions > 0
    assert admitted == [0, 1, 2, 3]
    assert [samples.response(row).tolist() for row in range(4)] == [expected(row, 4, 40) for row in range(4)]
    roomy = Scheduler(Samples(40), 4, 1000, 4, 44, 2)
    ask(roomy, np.arange(100, 104), 0, 4, 0, 0.0)
    run(roomy, Device(1000, 4), 2)
    assert roomy.preemptions == 0


def test_the_longest_expected_start_first():
    scheduler = Scheduler(Samples(8), 2, 1000, 4, 20, 2)
    for i, length in enumerate([10.0, 30.0, 20.0]):
        ask(scheduler, np.arange(100, 105), i, 2, 0, length)
    assert run(scheduler, Device(1000, 4), 2) == [2, 3, 4, 5, 0, 1]


def test_requests_may_come_while_others_run():
    """Two more samples for each that ended early: no sample of an earlier request is disturbed."""
    samples = Samples(6)
    scheduler = Scheduler(samples, 3, 60, 4, 12, 2)
    ask(scheduler, np.arange(100, 106), 0, 4, 0, 0.0)
    asked = []

    def more(row):
        if row < 4:
            asked.append(ask(scheduler, np.arange(100, 104), 1 + row, 2, 0, 0.0))

    run(scheduler, Device(60, 4), 2, more)
    assert len(samples) == 12 and [rows.start for rows in asked] == [4, 6, 8, 10]
    for row in range(12):
        assert samples.response(row).tolist() == expected(row, 6 if row < 4 else 4, 6)


def test_a_prompt_is_computed_once_for_all_its_samples():
    for count in (1, 8, 32):
        scheduler = Scheduler(Samples(4), 4, 1000, 4, 24, 2)
        ask(scheduler, np.arange(100, 119), 0, count, 0, 0.0)
        computed, plan = [], scheduler.plan
        scheduler.plan = lambda *a, plan=plan, computed=computed: (p := plan(*a), computed.extend(p.chunks))[0]
        run(scheduler, Device(1000, 4), 2)
        assert [len(chunk.tokens) for chunk in computed] == [18]


def test_pages_for_rounds_up():
    assert [pages_for(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
