"""The engine against transformers, against a dense forward pass, and against itself in other layouts."""

import pathlib

import jax
import numpy as np
import pytest

from gvm_jax.models.logprobs import response_logprobs
from gvm_jax.models.qwen2 import segment_attention
from gvm_jax.rollout.engine import RolloutEngine, RolloutSettings

GOLDEN = pathlib.Path(__file__).parent.parent / "models/golden"
SETTINGS = dict(
    max_prompt_tokens=20,
    max_new_tokens=12,
    slots=5,
    page_size=4,
    block_steps=3,
    prefill_batch=2,
    prefill_chunk=8,
)
KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(2, 96, n).astype(np.int32) for n in (2, 20, 5, 9, 13, 17, 4)]
IDS = np.array([11, 5, 900, 3, 77, 42, 8], np.int32)
COUNTS = np.array([3, 1, 0, 6, 2, 1, 4], np.int32)


def engine_of(tiny, mesh, stop_ids=(1, 7, 8, 9), **changes):
    return RolloutEngine(tiny[0], mesh, RolloutSettings(**{**SETTINGS, **changes}), stop_ids)


@pytest.fixture(scope="module")
def engine(tiny, mesh):
    return engine_of(tiny, mesh)


@pytest.fixture(scope="module")
def rollouts(engine, tiny):
    return engine.sample(tiny[1], PROMPTS, IDS, COUNTS, KEY, 1.0)


def test_rows_are_the_prompts_in_order_with_their_counts(rollouts):
    np.testing.assert_array_equal(rollouts.group, np.repeat(np.arange(7), COUNTS))
    for row, group in enumerate(rollouts.group):
        prompt, response = PROMPTS[group], rollouts.response(row)
        assert rollouts.prompt_lengths[row] == len(prompt)
        np.testing.assert_array_equal(rollouts.tokens[row, : len(prompt)], prompt)
        assert not rollouts.tokens[row, len(prompt) + len(response) :].any()
        stops = np.isin(response, (1, 7, 8, 9))
        assert not stops[:-1].any()
        assert rollouts.stopped[row] == stops[-1]
        assert stops[-1] or len(response) == 12
    assert len({tuple(rollouts.response(row)) for row in range(4, 10)}) > 1, "samples of a prompt must differ"


def test_behaviour_logprobs_equal_a_dense_forward_pass(rollouts, tiny):
    model, params, _ = tiny
    dense = response_logprobs(
        model.bind(params),
        rollouts.tokens,
        rollouts.prompt_lengths,
        rollouts.response_lengths,
        12,
        1.0,
        chunk=5,
    )
    np.testing.assert_allclose(rollouts.logprobs, dense, atol=2e-5)
    assert (rollouts.logprobs != 0).sum() == rollouts.response_lengths.sum()


@pytest.mark.parametrize(
    "changes",
    [
        dict(slots=1),
        dict(slots=16, prefill_batch=7),
        dict(page_size=16),
        dict(page_size=1, block_steps=5),
        dict(prefill_chunk=3, block_steps=12),
        dict(pages=14),
    ],
    ids=str,
)
def test_layout_changes_no_token(tiny, mesh, rollouts, changes):
    other = engine_of(tiny, mesh, **changes).sample(tiny[1], PROMPTS, IDS, COUNTS, KEY, 1.0)
    np.testing.assert_array_equal(other.tokens, rollouts.tokens)
    np.testing.assert_allclose(other.logprobs, rollouts.logprobs, atol=2e-5)


def test_permuting_the_prompts_permutes_the_rollouts(engine, tiny, rollouts):
    order = np.array([4, 0, 6, 2, 5, 1, 3])
    other = engine.sample(tiny[1], [PROMPTS[i] for i in order], IDS[order], COUNTS[order], KEY, 1.0)
    rows = np.concatenate([np.flatnonzero(rollouts.group == i) for i in order])
    np.testing.assert_array_equal(other.tokens, rollouts.tokens[rows])


def test_later_samples_continue_the_earlier_ones(engine, tiny, rollouts):
    """Pilots and fresh samples of one key are the samples of a single call."""
    later = engine.sample(tiny[1], PROMPTS, IDS, np.maximum(COUNTS - 1, 0), KEY, 1.0, first_sample=1)
    first = np.cumsum(COUNTS) - COUNTS
    rest = np.setdiff1d(np.arange(COUNTS.sum()), first[COUNTS > 0])
    np.testing.assert_array_equal(later.tokens, rollouts.tokens[rest])


def test_device_count_changes_no_token(tiny, rollouts, test_mesh):
    for mesh in (test_mesh(tensor=2), test_mesh(fsdp=2, tensor=2), test_mesh(data=4)):
        other = engine_of(tiny, mesh).sample(tiny[1], PROMPTS, IDS, COUNTS, KEY, 1.0)
        np.testing.assert_array_equal(other.tokens, rollouts.tokens)


def test_nothing_is_compiled_after_the_first_call(engine, tiny, rollouts, compilations):
    engine.sample(tiny[1], PROMPTS, IDS, COUNTS, jax.random.key(1), 1.0)
    compiled = len(compilations)
    for counts in (COUNTS[::-1], np.ones(7, np.int32), np.array([9, 0, 0, 0, 0, 0, 0])):
        engine.sample(tiny[1], PROMPTS, IDS, counts, jax.random.key(1), 0.5)
    assert len(compilations) == compiled


def test_greedy_samples_agree_and_follow_the_argmax(engine, tiny):
    model, params, _ = tiny
    greedy = engine.sample(params, PROMPTS[3:4], IDS[3:4], np.array([2]), KEY, 0.0)
    np.testing.assert_array_equal(greedy.tokens[0], greedy.tokens[1])
    tokens = greedy.tokens[:1]
    positions = np.arange(tokens.shape[1])[None]
    hidden, _ = model.bind(params)(tokens, positions, segment_attention(np.ones_like(tokens)))
    likeliest = np.argmax(model.bind(params).logits(hidden)[0], axis=-1)
    begin = len(PROMPTS[3]) - 1
    np.testing.assert_array_equal(greedy.response(0), likeliest[begin : begin + greedy.response_lengths[0]])


def test_finished_samples_are_reported_once_as_they_end(engine, tiny, rollouts):
    seen = {}
    engine.sample(tiny[1], PROMPTS, IDS, COUNTS, KEY, 1.0, on_finished=lambda row, r: seen.update({row: r}))
    assert sorted(seen) == list(range(COUNTS.sum()))
    for row, response in seen.items():
        np.testing.assert_array_equal(response, rollouts.response(row))


def test_an_interruption_leaves_the_engine_usable(engine, tiny, rollouts):
    calls = []

    def interrupt():
        calls.append(None)
        if len(calls) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        engine.sample(tiny[1], PROMPTS, IDS, COUNTS, KEY, 1.0, check_interrupt=interrupt)
    again = engine.sample(tiny[1], PROMPTS, IDS, COUNTS, KEY, 1.0)
    np.testing.assert_array_equal(again.tokens, rollouts.tokens)


def test_bad_input_is_named(tiny, mesh, engine):
    with pytest.raises(ValueError, match=r"rollout.pages = 12: cannot hold one sequence .* at least 14"):
        engine_of(tiny, mesh, pages=12)
    for length in (1, 21):
        with pytest.raises(ValueError, match=f"prompt 0 has {length} tokens"):
            engine.sample(tiny[1], [np.zeros(length, np.int32)], IDS[:1], COUNTS[:1], KEY, 1.0)


def test_the_cache_is_updated_in_place(engine, tiny):
    """A copy of the cache in the decode program would show as temporary memory of at least its size."""
    cache = jax.eval_shape(engine._new_cache)
    abstract = (
        jax.eval_shape(engine._cast, tiny[1]),
        cache,
        jax.eval_shape(engine._idle_slots),
        np.float32(1),
    )
    memory = engine._decode.lower(*abstract).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= cache.size * cache.dtype.itemsize


@pytest.mark.slow
def test_real_greedy_tokens_equal_transformers(qwen25, mesh):
    model, params, _ = qwen25
    golden = np.load(GOLDEN / "qwen25_0p5b.npz")
    prompts = [golden[f"prompt_{i}"] for i in range(5)]
    settings = RolloutSettings(
        max_prompt_tokens=64, max_new_tokens=64, slots=5, page_size=16, prefill_batch=5, prefill_chunk=64
    )
    engine = RolloutEngine(model, mesh, settings, stop_ids=())
    greedy = engine.sample(params, prompts, np.arange(5), np.ones(5, np.int32), KEY, 0.0)
    for i in range(5):
        np.testing.assert_array_equal(greedy.response(i), golden[f"greedy_{i}"])
