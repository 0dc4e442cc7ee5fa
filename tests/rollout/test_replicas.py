"""Samples shared out over replicas: each is decoded once, whole, and no slot stays free while a sample waits."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_jax.rollout.pages import least_pages
from gvm_jax.rollout.replicas import Replicas
from gvm_jax.rollout.rollouts import Samples
from gvm_jax.rollout.scheduler import Request, Scheduler

MAX_RESPONSE, STEPS = 9, 2


def length_of(row):
    return 1 + row * 7919 % MAX_RESPONSE


def run(replicas, samples):
    """Decodes until all is done; every sample has its own length. Returns the most blocks that a replica had."""
    blocks = 0
    while not replicas.done:
        for scheduler, plan in zip(replicas.schedulers, replicas.plan(4, 64), strict=True):
            rows = scheduler.row[plan.slots]
            left = np.array([length_of(row) for row in rows], np.int32) - samples.lengths[rows]
            steps = np.minimum(left, STEPS)
            tokens = np.where(np.arange(STEPS) < steps[:, None], rows[:, None] + 1, -1)
            samples.append(rows, tokens, np.zeros(tokens.shape, np.float32))
            scheduler.advance(plan.slots, steps, rows + 1, left <= STEPS)
        blocks += 1
        assert blocks < 1000
    return blocks


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data(), slots=st.integers(1, 5), num_replicas=st.integers(1, 4))
def test_every_sample_is_decoded_once_on_some_replica(data, slots, num_replicas):
    counts = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))
    pages = least_pages(6, MAX_RESPONSE, 4) + data.draw(st.integers(0, 20))
    samples = Samples(MAX_RESPONSE)
    replicas = Replicas([Scheduler(samples, slots, pages, 4, 6 + MAX_RESPONSE, STEPS) for _ in range(num_replicas)])
    asked = {}
    for i, count in enumerate(counts):
        rows = samples.add(count)
        replicas.request(Request(np.arange(6), i, rows, 10 * i, float(i % 3)))
        asked.update({row: (i, 10 * i + place) for place, row in enumerate(rows)})
    started = {}
    for scheduler in replicas.schedulers:
        admit = scheduler._admit

        def spy(plan, scheduler=scheduler, admit=admit):
            before = scheduler.active.copy()
            admitted = admit(plan)
            for slot in np.flatnonzero(scheduler.active & ~before):
                row = int(scheduler.row[slot])
                started[row] = (scheduler.prompt(slot).prompt_id, int(scheduler.sample[slot]))
            return admitted

        scheduler._admit = spy
    run(replicas, samples)
    assert started == asked, "a sample keeps its prompt and its index wherever it decodes"
    for row in range(len(samples)):
        assert samples.response(row).tolist() == [row + 1] * length_of(row)
    for scheduler in replicas.schedulers:
        assert scheduler._pool.num_free == pages - 1, "pages leak"
        assert scheduler.waiting == 0 and scheduler.expected_tokens == 0


def test_a_large_group_is_spread_over_slots_that_would_stay_free():
    samples = Samples(MAX_RESPONSE)
    replicas = Replicas([Scheduler(samples, 4, 100, 4, 20, STEPS) for _ in range(4)])
    replicas.request(Request(np.arange(6), 0, samples.add(14), 0, 5.0))
    plans = replicas.plan(4, 64)
    assert [len(plan.slots) for plan in plans] == [4, 4, 4, 2]
    assert all(plan.chunks for plan in plans), "each computes the prompt for itself"


def test_prompts_go_to_the_replica_with_the_least_to_do():
    samples = Samples(MAX_RESPONSE)
    replicas = Replicas([Scheduler(samples, 8, 100, 4, 20, STEPS) for _ in range(2)])
    for i, (count, length) in enumerate([(2, 9.0), (3, 3.0), (3, 3.0), (1, 1.0)]):
        replicas.request(Request(np.arange(6), i, samples.add(count), 0, length))
    assert [scheduler.expected_tokens for scheduler in replicas.schedulers] == [19, 18]
