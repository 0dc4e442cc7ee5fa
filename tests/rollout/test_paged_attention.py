"""XLA's paged attention against a float64 sum over every key, and the tiles against the samples they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_jax.rollout import paged_attention
from gvm_jax.rollout.kernels import partial_xla
from gvm_jax.rollout.kernels.partial_xla import Part, merge, normalise, partial_attention
from gvm_jax.rollout.paged_attention import PagedAttention, make_tiles

PAGE, KV, HEADS, DIM, PAGES = 4, 2, 6, 8, 60
RNG = np.random.default_rng(0)
CACHE = RNG.normal(size=(2 * PAGES, PAGE, 2 * KV, DIM)).astype(np.float32)


def exact(q, table, begin, end, first_page):
    """Softmax attention of one query [H, D] to the keys begin <= j < end, in float64; zeros over none."""
    kv = CACHE[first_page + np.asarray(table)].reshape(-1, KV, 2, DIM).astype(np.float64)[begin:end]
    if not len(kv):
        return np.zeros((HEADS, DIM))
    kv = kv.repeat(HEADS // KV, axis=1)
    scores = np.einsum("hd,thd->ht", q.astype(np.float64), kv[:, :, 0]) / DIM**0.5
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return np.einsum("ht,thd->hd", weights / weights.sum(1, keepdims=True), kv[:, :, 1])


@pytest.mark.parametrize("blocks", [(128, 16), (4, 2), (3, 5)])
def test_partial_attention_is_the_softmax_over_a_range(blocks, monkeypatch):
    """Ranges that begin inside a page, end anywhere, are empty, or differ between the queries of an item."""
    monkeypatch.setattr(partial_xla, "KEY_BLOCK", blocks[0])
    monkeypatch.setattr(partial_xla, "ITEM_BLOCK", blocks[1])
    items, queries = 7, 3
    q = RNG.normal(size=(items, queries, HEADS, DIM)).astype(np.float32)
    tables = RNG.integers(1, PAGES, (items, 5)).astype(np.int32)
    begin = np.array([0, 3, 5, 9, 0, 19, 4], np.int32)
    end = begin[:, None] + np.array([[20, 1, 7], [5, 0, 9], [0, 0, 0], [11, 1, 2], [1, 2, 3], [1, 1, 0], [8, 16, 4]])
    part = jax.jit(partial_attention)(q, CACHE, tables, begin, end.astype(np.int32), PAGES)
    found = normalise(part)
    for i in range(items):
        for t in range(queries):
            expected = exact(q[i, t], tables[i], begin[i], end[i, t], PAGES)
            np.testing.assert_allclose(found[i, t], expected, atol=2e-6)
            assert np.isneginf(part.max_score[i, t]).all() == (begin[i] == end[i, t])


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_parts_merge_to_the_whole(a, b, c):
    begin, middle, end = sorted((a, b, c))
    q, table = np.ones((1, 1, HEADS, DIM), np.float32), np.arange(1, 6, dtype=np.int32)[None]

    def part(begin, end):
        return partial_attention(
            q, jnp.asarray(CACHE), jnp.asarray(table), np.array([begin]), np.array([[end]]), jnp.int32(0)
        )

    merged = merge(part(begin, middle), part(middle, end))
    np.testing.assert_allclose(normalise(merged)[0, 0], exact(q[0, 0], table[0], begin, end, 0), atol=2e-6)


def test_merging_nothing_with_nothing_is_nothing():
    nothing = Part(jnp.zeros((1, 1, 2, 3)), jnp.full((1, 1, 2), -jnp.inf), jnp.zeros((1, 1, 2)))
    assert not np.isnan(normalise(merge(nothing, nothing))).any()


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_tiles_hold_every_sample_once_with_its_prompt(groups):
    groups = np.array(groups, np.int32)
    tables, lengths = np.maximum(groups, 0)[:, None] * 10 + np.arange(3), np.maximum(groups, 0) + 5
    tiles = make_tiles(groups, tables, lengths)
    live = np.flatnonzero(groups >= 0)
    np.testing.assert_array_equal(tiles.members[tiles.tile[live], tiles.lane[live]], live)
    assert len({(t, n) for t, n in zip(tiles.tile[live], tiles.lane[live], strict=True)}) == len(live)
    np.testing.assert_array_equal(tiles.page_table[tiles.tile[live]], tables[live])
    np.testing.assert_array_equal(tiles.length[tiles.tile[live]], lengths[live])
    counts = np.unique(groups[live], return_counts=True)[1]
    assert (tiles.length > 0).sum() == sum(-(-n // paged_attention.TILE) for n in counts), "prompts are read too often"
    assert (tiles.length[: (tiles.length > 0).sum()] > 0).all(), "live tiles come first"


def test_decoding_with_shared_prompts_is_attention_to_the_whole_sequence(mesh):
    """Three samples of one prompt and one of another, the last slot idle: prompt pages read by tile, own by slot."""
    paged = PagedAttention("xla", PAGES, mesh)
    prompts, group = [[7, 8, 9], [20, 21]], np.array([0, 1, 0, 0, -1], np.int32)
    shared, position = np.array([10, 5, 10, 10, 0], np.int32), np.array([10, 9, 17, 13, -1], np.int32)
    own = np.arange(30, 60, dtype=np.int32).reshape(5, 6)
    tables = np.array([[*prompts[g][: n // PAGE], *row][:5] for g, n, row in zip(group, shared, own, strict=True)])
    prompt_tables = np.array([(prompts[g] + [0])[:3] for g in group], np.int32)
    tiles = make_tiles(group, prompt_tables, shared)
    q, k, v = (RNG.normal(size=(5, 1, heads, DIM)).astype(np.float32) for heads in (HEADS, KV, KV))
    mixed, cache = jax.jit(paged.decode(tables, position, shared, tiles))(q, k, v, 1, CACHE)
    flat = np.asarray(cache[PAGES:])
    for i in range(4):
        prompt = flat[prompts[group[i]]].reshape(-1, 2 * KV, DIM)[: shared[i]]
        rest = flat[tables[i]].reshape(-1, 2 * KV, DIM)[shared[i] : position[i] + 1]
        np.testing.assert_array_equal(rest[-1].reshape(KV, 2, DIM)[:, 0], k[i, 0])
        kv = np.concatenate([prompt, rest]).reshape(-1, KV, 2, DIM).astype(np.float64).repeat(HEADS // KV, axis=1)
        scores = np.einsum("hd,thd->ht", q[i, 0].astype(np.float64), kv[:, :, 0]) / DIM**0.5
        weights = np.exp(scores - scores.max(1, keepdims=True))
        expected = np.einsum("ht,thd->hd", weights / weights.sum(1, keepdims=True), kv[:, :, 1])
        np.testing.assert_allclose(mixed[i, 0], expected, atol=2e-6)
    untouched = np.setdiff1d(np.arange(2 * PAGES), [0, PAGES, *(PAGES + tables[range(4), position[:4] // PAGE])])
    np.testing.assert_array_equal(cache[untouched], CACHE[untouched])
