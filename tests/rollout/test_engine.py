"""The engine against transformers, against a dense forward pass, and against itself in other layouts."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from gvm_jax.config import ConfigError
from gvm_jax.models.config import Qwen2Config
from gvm_jax.models.logprobs import response_logprobs
from gvm_jax.models.packed_attention import segment_attention
from gvm_jax.models.quantize import quantize
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.sharding import param_shardings
from gvm_jax.rollout.engine import RolloutEngine
from gvm_jax.rollout.paged_attention import resolve_attention
from gvm_jax.rollout.policy import Policy
from gvm_jax.rollout.settings import RolloutSettings

GOLDEN = pathlib.Path(__file__).parent.parent / "models/golden"
SETTINGS = dict(
    max_prompt_tokens=20,
    max_new_tokens=12,
    slots=5,
    page_size=4,
    block_steps=3,
    prefill_tokens=64,
)
KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(2, 96, n).astype(np.int32) for n in (2, 20, 5, 9, 13, 17, 4)]
IDS = np.array([11, 5, 900, 3, 77, 42, 8], np.int32)
COUNTS = np.array([3, 1, 0, 6, 2, 1, 4], np.int32)


def tiny_config():
    return Qwen2Config.from_folder(GOLDEN / "tiny_untied")


def engine_of(tiny, mesh, stop_ids=(1, 7, 8, 9), **changes):
    return RolloutEngine(tiny[0], mesh, RolloutSettings(**{**SETTINGS, **changes}), stop_ids)


@pytest.fixture(scope="module")
def engine(tiny, mesh):
    return engine_of(tiny, mesh)


@pytest.fixture(scope="module")
def policy(engine, tiny):
    return Policy(engine, tiny[1])


@pytest.fixture(scope="module")
def rollouts(policy):
    return policy.sample(PROMPTS, IDS, COUNTS, KEY, 1.0)


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
        dict(slots=16),
        dict(slots=32, prefill_tokens=32),
        dict(page_size=16),
        dict(page_size=1, block_steps=5),
        dict(block_steps=12),
        dict(pages=10),
    ],
    ids=str,
)
def test_layout_changes_no_token(tiny, mesh, rollouts, changes):
    other = Policy(engine_of(tiny, mesh, **changes), tiny[1]).sample(PROMPTS, IDS, COUNTS, KEY, 1.0)
    np.testing.assert_array_equal(other.tokens, rollouts.tokens)
    np.testing.assert_allclose(other.logprobs, rollouts.logprobs, atol=2e-5)


def test_permuting_the_prompts_permutes_the_rollouts(policy, rollouts):
    order = np.array([4, 0, 6, 2, 5, 1, 3])
    other = policy.sample([PROMPTS[i] for i in order], IDS[order], COUNTS[order], KEY, 1.0)
    rows = np.concatenate([np.flatnonzero(rollouts.group == i) for i in order])
    np.testing.assert_array_equal(other.tokens, rollouts.tokens[rows])


def test_later_samples_continue_the_earlier_ones(policy, rollouts):
    """Pilots and fresh samples of one key are the samples of a single call."""
    later = policy.sample(PROMPTS, IDS, np.maximum(COUNTS - 1, 0), KEY, 1.0, first_sample=1)
    first = np.cumsum(COUNTS) - COUNTS
    rest = np.setdiff1d(np.arange(COUNTS.sum()), first[COUNTS > 0])
    np.testing.assert_array_equal(later.tokens, rollouts.tokens[rest])


def test_device_count_changes_no_token(tiny, rollouts, test_mesh):
    layouts = [
        (test_mesh(tensor=2), 0, 1), (test_mesh(fsdp=2, tensor=2), 0, 2), (test_mesh(data=4), 0, 4),
        (test_mesh(fsdp=4), 2, 2), (test_mesh(tensor=4), 1, 4),
    ]  # fmt: skip
    for mesh, tensor, replicas in layouts:
        engine = engine_of(tiny, mesh, tensor=tensor, slots=2)
        assert engine.replicas == replicas
        policy = Policy(engine, tiny[1])
        other = policy.sample(PROMPTS, IDS, COUNTS, KEY, 1.0)
        np.testing.assert_array_equal(other.tokens, rollouts.tokens)
        assert policy.stats.sampled_tokens == rollouts.response_lengths.sum()


def test_replicas_may_have_the_devices_in_another_order(tiny, test_mesh, monkeypatch):
    """As where neighbours in the mesh belong to different hosts."""

    def dealt(mesh, tensor, _):
        return jax.sharding.Mesh(mesh.devices.reshape(-1)[[0, 2, 1, 3]].reshape(-1, 1, tensor), mesh.axis_names)

    mesh = test_mesh(fsdp=4)
    model = Model(tiny[0].config, "bfloat16")
    params = jax.device_put(tiny[1], param_shardings(model, mesh))

    def sample():
        engine = RolloutEngine(model, mesh, RolloutSettings(**SETTINGS, tensor=2), (1, 7, 8, 9))
        return Policy(engine, params).sample(PROMPTS, IDS, COUNTS, KEY, 1.0)

    expected = sample()
    monkeypatch.setattr("gvm_jax.rollout.engine.replica_mesh", dealt)
    np.testing.assert_array_equal(sample().tokens, expected.tokens)


def test_replicas_share_the_work(tiny, test_mesh):
    """Of 16 samples of one prompt, each of four replicas takes four: a quarter of the blocks of a single one."""
    blocks = []
    for mesh in (test_mesh(), test_mesh(data=4)):
        policy = Policy(engine_of(tiny, mesh, stop_ids=(), slots=4), tiny[1])
        policy.sample(PROMPTS[:1], IDS[:1], np.array([16]), KEY, 1.0)
        blocks.append(policy.stats.decode_blocks)
    assert blocks == [16, 4]


def test_nothing_is_compiled_after_the_first_call(engine, tiny, rollouts, compilations):
    """20 allocations, from one prompt that has all samples to one sample each, and other temperatures."""
    policy = Policy(engine, tiny[1])
    compiled = len(compilations)
    rng = np.random.default_rng(1)
    for i in range(20):
        counts = rng.multinomial(17, rng.dirichlet(np.full(7, 0.3)))
        policy.sample(PROMPTS, IDS, counts, KEY, 0.5 + i / 10)
    assert len(compilations) == compiled


def test_a_batch_narrows_as_samples_run_out(tiny, mesh, rollouts):
    """Widths 16 and 8 take turns without a change of tokens."""
    engine = engine_of(tiny, mesh, slots=16)
    widths = []
    policy = Policy(engine, tiny[1])
    engine.compiled |= {
        name: lambda *args, name=name, function=function: (widths.append(int(name.split()[1])), function(*args))[1]
        for name, function in engine.compiled.items()
        if name.startswith("decode")
    }
    found = policy.sample(PROMPTS, IDS, COUNTS, KEY, 1.0)
    np.testing.assert_array_equal(found.tokens, rollouts.tokens)
    assert widths == sorted(widths, reverse=True) and set(widths) == {8, 16}


def test_pressure_is_counted_and_changes_no_token(tiny, mesh, rollouts):
    tight = Policy(engine_of(tiny, mesh, pages=14), tiny[1])
    found = tight.sample(PROMPTS, IDS, COUNTS, KEY, 1.0)
    np.testing.assert_array_equal(found.tokens, rollouts.tokens)
    assert tight.stats.preemptions > 0
    assert tight.stats.prefill_tokens > sum(len(p) - 1 for p, n in zip(PROMPTS, COUNTS, strict=True) if n)


def test_the_cost_of_a_prompt_does_not_depend_on_its_samples(policy):
    for n in (1, 6, 30):
        policy.sample(PROMPTS, IDS, np.full(7, n), KEY, 1.0)
        assert policy.stats.prefill_tokens == sum(len(prompt) - 1 for prompt in PROMPTS)


def test_stats_account_for_the_call(policy):
    again = policy.sample(PROMPTS, IDS, COUNTS, KEY, 1.0)
    stats = policy.stats
    assert stats.sampled_tokens == again.response_lengths.sum() and stats.preemptions == 0
    parts = stats.prefill_seconds + stats.decode_seconds + stats.idle_seconds
    assert 0 < parts <= stats.seconds * 1.001 and parts == pytest.approx(stats.seconds, rel=0.05, abs=0.01)
    assert (stats + stats).sampled_tokens == 2 * stats.sampled_tokens


def test_int8_weights_sample_a_policy_near_the_float_one(tiny, mesh):
    """Behaviour log-probs are those of the rounded weights: near, not equal, to the float model's."""
    model, params, _ = tiny
    engine = engine_of(tiny, mesh, weight_dtype="int8")
    found = Policy(engine, params).sample(PROMPTS, IDS, COUNTS, KEY, 1.0)
    args = found.tokens, found.prompt_lengths, found.response_lengths, 12, 1.0, 5
    rounded = Model(model.config, weight_dtype="int8")
    np.testing.assert_allclose(found.logprobs, response_logprobs(rounded.bind(quantize(params)), *args), atol=5e-5)
    mismatch = np.abs(found.logprobs - response_logprobs(model.bind(params), *args))
    assert 1e-4 < mismatch.max() < 0.3


def test_bfloat16_weights_are_cast_and_laid_out_by_layer(tiny, mesh):
    config = tiny[0].config
    engine = RolloutEngine(Model(config, "bfloat16"), mesh, RolloutSettings(**SETTINGS), (1, 7, 8, 9))
    policy = Policy(engine, tiny[1])
    assert {leaf.dtype for leaf in jax.tree.leaves(policy._params)} == {np.dtype("bfloat16")}
    assert set(policy._params["layers"]) == set(range(config.num_hidden_layers))
    found = policy.sample(PROMPTS, IDS, COUNTS, KEY, 1.0)
    dense = response_logprobs(
        tiny[0].bind(tiny[1]), found.tokens, found.prompt_lengths, found.response_lengths, 12, 1.0, 5
    )
    assert np.abs(found.logprobs - dense).max() < 0.1


def test_greedy_samples_agree_and_follow_the_argmax(engine, tiny):
    model, params, _ = tiny
    greedy = Policy(engine, params).sample(PROMPTS[3:4], IDS[3:4], np.array([2]), KEY, 0.0)
    np.testing.assert_array_equal(greedy.tokens[0], greedy.tokens[1])
    tokens = greedy.tokens[:1]
    positions = np.arange(tokens.shape[1])[None]
    hidden, _ = model.bind(params)(tokens, positions, segment_attention(np.ones_like(tokens)))
    likeliest = np.argmax(model.bind(params).logits(hidden)[0], axis=-1)
    begin = len(PROMPTS[3]) - 1
    np.testing.assert_array_equal(greedy.response(0), likeliest[begin : begin + greedy.response_lengths[0]])


@pytest.mark.parametrize("cuts", [{}, {"top_p": 0.9, "top_k": 50}, {"weight_dtype": "int8"}], ids=str)
def test_masked_tokens_are_never_sampled(tiny, mesh, cuts):
    """Log-probabilities are those of a plain softmax over the 40 other tokens, fewer than top_k keeps."""
    model, params, _ = tiny
    config = dataclasses.replace(model.config, masked_ids=(range(40), range(80, 96)))
    engine = RolloutEngine(Model(config), mesh, RolloutSettings(**{**SETTINGS, **cuts}), ())
    policy, whole = Policy(engine, params), params
    if cuts.get("weight_dtype") == "int8":
        model, whole = Model(model.config, weight_dtype="int8"), quantize(params)
    for temperature in (1.3, 0.0):
        drawn = policy.sample(PROMPTS[:2], IDS[:2], np.array([3, 2]), KEY, temperature)
        positions = np.broadcast_to(np.arange(drawn.tokens.shape[1]), drawn.tokens.shape)
        module = model.bind(whole)
        hidden, _ = module(drawn.tokens, positions, segment_attention(np.ones_like(drawn.tokens)))
        table = np.asarray(module.logits(hidden), np.float64)[:, :, 40:80] / (temperature or 1.0)
        table -= np.log(np.exp(table).sum(-1, keepdims=True))
        for row, begin in enumerate(drawn.prompt_lengths):
            places, of_row = drawn.response(row) - 40, table[row, begin - 1 : begin + 11]
            assert len(places) == 12 and (0 <= places).all() and (places < 40).all()
            np.testing.assert_allclose(drawn.logprobs[row], of_row[np.arange(12), places], atol=2e-5)
            if temperature == 0:
                np.testing.assert_array_equal(places, of_row.argmax(-1))


def test_finished_samples_are_reported_once_as_they_end(policy, rollouts):
    seen = {}
    policy.sample(PROMPTS, IDS, COUNTS, KEY, 1.0, on_finished=lambda row, r: seen.update({row: r}))
    assert sorted(seen) == list(range(COUNTS.sum()))
    for row, response in seen.items():
        np.testing.assert_array_equal(response, rollouts.response(row))


def test_an_interruption_leaves_the_engine_usable(engine, tiny, rollouts):
    calls = []

    def interrupt():
        calls.append(None)
        if len(calls) == 3:
            raise InterruptedError

    policy = Policy(engine, tiny[1])
    with pytest.raises(InterruptedError):
        policy.sample(PROMPTS, IDS, COUNTS, KEY, 1.0, check_interrupt=interrupt)
    again = policy.sample(PROMPTS, IDS, COUNTS, KEY, 1.0)
    np.testing.assert_array_equal(again.tokens, rollouts.tokens)


def test_bad_input_is_named(tiny, mesh, policy):
    with pytest.raises(ValueError, match=r"rollout.pages = 9: cannot hold one sequence .* at least 10"):
        engine_of(tiny, mesh, pages=9)
    with pytest.raises(ConfigError, match=r"rollout.tensor = 3 .*use --config.rollout.tensor=1$"):
        engine_of(tiny, mesh, tensor=3)
    with pytest.raises(
        ConfigError, match=r"rollout.attention = 'tpu_shared': runs on a TPU, .*'cpu'; use 'xla' or 'auto'"
    ):
        engine_of(tiny, mesh, attention="tpu_shared")
    assert [resolve_attention("auto", platform) for platform in ("cpu", "gpu", "tpu")] == ["xla", "gpu", "tpu"]
    for length in (1, 21):
        with pytest.raises(ValueError, match=f"prompt 0 has {length} tokens"):
            policy.sample([np.zeros(length, np.int32)], IDS[:1], COUNTS[:1], KEY, 1.0)
    for wrong in (-1, 96):
        with pytest.raises(ValueError, match=r"prompt 0 has the token ids .*; those of the model's .* are 0 to 95"):
            policy.sample([np.array([1, wrong])], IDS[:1], COUNTS[:1], KEY, 1.0)


@pytest.mark.slow
def test_decoding_takes_little_memory_beside_the_cache(mesh):
    """The shapes of the 0.5B with 64 slots: no copy of the cache, and temporaries below a tenth of it."""
    config = dataclasses.replace(
        tiny_config(), hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, head_dim=64, vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip
    settings = RolloutSettings(max_prompt_tokens=256, max_new_tokens=400, slots=64, page_size=32)
    engine = RolloutEngine(Model(config), mesh, settings, (1,))
    assert engine.cache_bytes == 24 * settings.num_pages * 32 * 2 * 2 * 64 * 4
    for name, function in engine.compiled.items():
        if not name.startswith("decode"):
            continue
        memory = function.memory_analysis()
        assert memory.alias_size_in_bytes >= engine.cache_bytes
        assert memory.temp_size_in_bytes < 0.1 * engine.cache_bytes


@pytest.mark.slow
def test_real_greedy_tokens_equal_transformers(qwen25, mesh):
    model, params, _ = qwen25
    golden = np.load(GOLDEN / "qwen25_0p5b.npz")
    prompts = [golden[f"prompt_{i}"] for i in range(5)]
    settings = RolloutSettings(max_prompt_tokens=64, max_new_tokens=64, slots=5, page_size=16)
    engine = RolloutEngine(model, mesh, settings, stop_ids=())
    greedy = Policy(engine, params).sample(prompts, np.arange(5), np.ones(5, np.int32), KEY, 0.0)
    for i in range(5):
        np.testing.assert_array_equal(greedy.response(i), golden[f"greedy_{i}"])
