"""The train step against its algorithm written out plainly, and its invariances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gvm_jax.allocation import Allocator, Gvm, Uniform
from gvm_jax.allocation.statistics import estimate
from gvm_jax.models.logprobs import response_logprobs
from gvm_jax.models.quantize import quantize
from gvm_jax.models.qwen2 import Model
from gvm_jax.models.sharding import batch_sharding, replicated
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.runtime.cpu import compiler_options
from gvm_jax.runtime.keys import run_key
from gvm_jax.strategies.cures import Cures
from gvm_jax.strategies.dapo import Dapo
from gvm_jax.training.gradient_norms import GradientNormSettings
from gvm_jax.training.objectives import Objective
from gvm_jax.training.state import make_optimizer, state_shardings
from gvm_jax.training.step import TrainStep
from gvm_jax.training.update import shuffle

COUNTS = [5, 1, 4, 6]
IDS, NEXT_IDS, NUM_PROMPTS = np.array([3, 0, 9, 5]), np.array([5, 1, 3, 2]), 12
REWARDS = np.array([1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1], np.float32)  # 2, 1, 0 and 5 accepted

PILOT_REWARDS = np.array([1, 0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0], np.float32)  # two pilots a prompt first

# Not Adam, which divides by the gradient's own size and so makes much of rounding where the gradient is near 0.
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9))


def make_allocator(strategy) -> Allocator:
    return Allocator(
        strategy, min_samples=1, max_samples=0, cost="samples", prompt_temperature=0.1,
        accept_rate_prior=2.0, gradient_norm_prior=2.0, decay=0.9,
    )  # fmt: skip


def make_step(model, mesh, **changes) -> TrainStep:
    settings = dict(
        model=model, mesh=mesh, optimizer=OPTIMIZER,
        objective=Objective("raft_pp", "log_likelihood", 0.2, 0.2, 0.0, "k3"),
        allocator=make_allocator(Gvm()),
        norms=GradientNormSettings("embed_tokens", chunk=4, max_samples=0, method="vmap"),
        num_prompts=NUM_PROMPTS, prompts_per_step=4, candidates_per_step=4, rollouts_per_step=16,
        pilot_samples=0, pilot_weight=0.5, updates_per_step=2,
        micro_batch=4, samples_per_row=1, logprob_chunk=3, temperature=0.8,
        max_prompt_tokens=7, max_new_tokens=7, seed=1,
    )  # fmt: skip
    return TrainStep(**{**settings, **changes})


def first_state(step: TrainStep, params, counts=COUNTS):
    return step.initial_state(params, IDS).replace(counts=np.array(counts))


def run_step(step: TrainStep, params, rollouts, rewards=REWARDS, steps=1):
    state = first_state(step, params)
    shardings = state_shardings(step.model, step.mesh, step.optimizer, state)
    state = jax.device_put(state, shardings)
    jitted = jax.jit(
        step.__call__, out_shardings=(shardings, replicated(step.mesh)), compiler_options=compiler_options(step.mesh)
    )
    for _ in range(steps):
        state, metrics = jitted(state, rollouts, rewards, NEXT_IDS)
    assert jitted._cache_size() == 1
    return jax.device_get(state), jax.device_get(metrics)


@pytest.fixture(scope="module")
def rollouts(make_rollouts):
    return make_rollouts(COUNTS, noise=0.3)


@pytest.fixture(scope="module")
def stepped(tiny, mesh, rollouts):
    return run_step(make_step(tiny[0], mesh), tiny[1], rollouts)


def assert_close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4), a, b)


def deal() -> list[np.ndarray]:
    """The rows of two updates: accepted ones, then the others, each in the order of a shuffle, dealt like cards."""
    shuffled = np.asarray(jax.random.permutation(run_key(1, "mini_batches", 0), 16))
    cards = [row for row in shuffled if REWARDS[row]] + [row for row in shuffled if not REWARDS[row]]
    return [np.array(cards[0::2]), np.array(cards[1::2])]


def written_out(model, params, rollouts, algorithm="raft_pp", cap=None):
    """Two updates on the hands of `deal`; 1/k weights, token sums over m/2 prompts times T."""
    opt_state = OPTIMIZER.init(params)
    accepted = np.array([REWARDS[rollouts.group == i].sum() for i in range(4)])
    weight = REWARDS / np.maximum(accepted, 1)[rollouts.group]
    dealt = deal()

    def logprobs_of(params, rows):
        return response_logprobs(
            model.bind(params), rollouts.tokens[rows], rollouts.prompt_lengths[rows],
            rollouts.response_lengths[rows], 8, 0.8, 8,
        )  # fmt: skip

    old, correction = rollouts.logprobs, np.ones((16, 8))
    if cap:
        old = np.asarray(logprobs_of(params, np.arange(16)))
        correction = np.minimum(np.exp(old - rollouts.logprobs), cap)
    for rows in dealt:

        def loss(params, rows=rows):
            logprobs = logprobs_of(params, rows)
            mask = np.arange(8) < rollouts.response_lengths[rows][:, None]
            ratio = jnp.exp(logprobs - old[rows])
            gain = logprobs if algorithm == "raft" else jnp.minimum(ratio, jnp.clip(ratio, 0.8, 1.2))
            return -(weight[rows][:, None] * mask * correction[rows] * gain).sum() / (2 * 8)

        updates, opt_state = OPTIMIZER.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_update_equals_the_algorithm_written_out(tiny, rollouts, stepped):
    assert_close(stepped[0].params, written_out(*tiny[:2], rollouts))
    assert stepped[1].truncated_weights is None


@pytest.mark.parametrize("algorithm", ["raft", "raft_pp"])
def test_corrected_update_equals_the_algorithm_written_out(tiny, rollouts, mesh, test_mesh, make_rollouts, algorithm):
    """Behaviour log-probabilities are off by 0.3 at random; π_old is that of before the first of both updates."""
    model, params, _ = tiny
    objective = Objective(algorithm, "log_likelihood", 0.2, 0.2, 0.0, "k3", importance_cap=1.2)
    # Norms in a pass of their own and the old policy's log-probabilities need nothing of each other: XLA's CPU backend
    # may run their collectives in another order on each virtual device, which never ends.
    uniform = make_allocator(Uniform())
    state, metrics = run_step(make_step(model, mesh, objective=objective, allocator=uniform), params, rollouts)
    assert_close(state.params, written_out(model, params, rollouts, algorithm, cap=1.2))
    inside = (np.arange(8) < rollouts.response_lengths[:, None]) & (REWARDS > 0)[:, None]
    weights = np.exp(make_rollouts(COUNTS).logprobs - rollouts.logprobs)  # the same tokens without the noise
    np.testing.assert_allclose(metrics.truncated_weights, (weights > 1.2)[inside].mean(), rtol=1e-6)
    assert 0.1 < metrics.truncated_weights < 0.5
    for variant in (test_mesh(data=4), test_mesh(fsdp=2, tensor=2)):
        again, _ = run_step(make_step(model, variant, objective=objective, allocator=uniform), params, rollouts)
        assert_close(again.params, state.params)


def test_rollouts_of_rounded_weights_show_in_the_mismatch(tiny, mesh, make_rollouts):
    model, params, _ = tiny
    exact, rounded = make_rollouts(COUNTS), quantize(params)
    sampler = Model(model.config, weight_dtype="int8").bind(rounded)
    behaviour = response_logprobs(sampler, exact.tokens, exact.prompt_lengths, exact.response_lengths, 8, 0.8, 8)
    objective = Objective("raft_pp", "log_likelihood", 0.2, 0.2, 0.0, "k3", importance_cap=1e9)
    step = make_step(model, mesh, objective=objective, updates_per_step=1)
    _, metrics = run_step(step, params, exact.replace(logprobs=np.asarray(behaviour)))
    inside = (np.arange(8) < exact.response_lengths[:, None]) & (REWARDS > 0)[:, None]
    expected = np.abs(exact.logprobs - behaviour)[inside]
    np.testing.assert_allclose(metrics.mismatch, expected.mean(), rtol=1e-3)
    np.testing.assert_allclose(metrics.max_mismatch, expected.max(), rtol=1e-3)
    assert metrics.mismatch > 1e-3 and metrics.clip_fraction == 0 and metrics.truncated_weights == 0


def test_micro_batches_and_devices_change_nothing(tiny, rollouts, stepped, test_mesh):
    model, params, _ = tiny
    variants = [
        make_step(model, test_mesh(), micro_batch=8, logprob_chunk=8),
        make_step(model, test_mesh(), micro_batch=1, samples_per_row=1),
        make_step(model, test_mesh(), micro_batch=8, samples_per_row=4),
        make_step(model, test_mesh(data=4)),
        make_step(model, test_mesh(fsdp=2, tensor=2)),
    ]
    for step in variants:
        state, metrics = run_step(step, params, rollouts)
        assert_close(state.params, stepped[0].params)
        np.testing.assert_array_equal(state.counts, stepped[0].counts)
        np.testing.assert_allclose(metrics.loss, stepped[1].loss, rtol=1e-5)


@pytest.mark.parametrize("weighting", ["reward", "token_mean"])
def test_grpo_with_kl_does_not_depend_on_micro_batches(tiny, rollouts, mesh, weighting):
    objective = Objective("grpo", weighting, 0.2, 0.2, 0.1, "k3")
    runs = [
        run_step(make_step(tiny[0], mesh, objective=objective, micro_batch=size), tiny[1], rollouts, steps=2)
        for size in (8, 2)
    ]
    assert_close(runs[0][0].params, runs[1][0].params)
    assert runs[0][1].kl > 0
    np.testing.assert_allclose(runs[0][1].kl, runs[1][1].kl, rtol=1e-4)


def test_row_order_changes_only_the_mini_batches(tiny, rollouts, mesh, stepped):
    one = make_step(tiny[0], mesh, updates_per_step=1)
    order = np.random.default_rng(3).permutation(16)
    moved = Rollouts(**{f: getattr(rollouts, f)[order] for f in rollouts.__dataclass_fields__})
    # Rows keep their group numbers; measuring norms wants them ascending, so this objective-only check uses uniform.
    uniform = dataclasses.replace(one, allocator=make_allocator(Uniform()))
    assert_close(
        run_step(uniform, tiny[1], rollouts)[0].params,
        run_step(uniform, tiny[1], moved, REWARDS[order])[0].params,
    )


def test_statistics_and_next_counts(tiny, stepped):
    state, metrics = stepped
    np.testing.assert_array_equal(state.statistics.sums.successes[IDS], [2, 1, 0, 5])
    np.testing.assert_array_equal(state.statistics.sums.trials[IDS], COUNTS)
    np.testing.assert_array_equal(state.statistics.sums.norm_count[IDS], [2, 1, 0, 5])
    assert (state.statistics.sums.trials > 0).sum() == 4
    np.testing.assert_array_equal(state.prompt_ids, NEXT_IDS)
    assert state.counts.sum() == 16 and state.counts.min() >= 1
    expected, _ = make_step(tiny[0], None).allocate(state.statistics, NEXT_IDS)
    np.testing.assert_array_equal(state.counts, expected)
    np.testing.assert_allclose(metrics.prompt_accept_rate, np.array([2, 1, 0, 5]) / COUNTS)
    assert metrics.measured_norms == 8 and state.step == 1


def test_packing_efficiency_is_the_share_of_tokens_of_trained_samples_over_all_that_was_computed(rollouts, stepped):
    """Each of the two updates puts its four accepted samples into one micro-batch of four rows."""
    length, rows = rollouts.prompt_lengths + rollouts.response_lengths, rollouts.tokens.shape[1]
    assert stepped[1].packing_efficiency == pytest.approx(length[REWARDS > 0].sum() / (2 * 4 * rows))


def test_mismatch_is_that_of_the_sampling_policy(tiny, mesh, make_rollouts):
    """Sampled by the trainer's own parameters the mismatch is rounding, although two updates follow."""
    _, metrics = run_step(make_step(tiny[0], mesh), tiny[1], make_rollouts(COUNTS))
    assert metrics.max_mismatch < 2e-5
    _, metrics = run_step(make_step(tiny[0], mesh), tiny[1], make_rollouts(COUNTS, noise=0.3))
    assert 0.1 < metrics.mismatch < 0.4


def test_pilots_and_fresh_samples_mix_by_a_constant(tiny, mesh, make_rollouts):
    """The gradient is λ·(pilots alone) + (1−λ)·(fresh alone), whatever their numbers."""
    pilot, fresh = make_rollouts([2] * 4, noise=0.2), make_rollouts([1, 3, 2, 2], noise=0.2, seed=1)
    rewards = PILOT_REWARDS

    def gradient(step, rollouts, rewards):
        step = dataclasses.replace(step, optimizer=optax.sgd(1.0), updates_per_step=1)
        state, _ = run_step(step, tiny[1], rollouts, rewards)
        return jax.tree.map(np.subtract, tiny[1], state.params)

    both = make_step(tiny[0], mesh, pilot_samples=2, pilot_weight=0.3)
    alone = make_step(tiny[0], mesh, rollouts_per_step=8)
    mixed = gradient(both, Rollouts.concatenate([pilot, fresh]), rewards)
    first, second = gradient(alone, pilot, rewards[:8]), gradient(alone, fresh, rewards[8:])
    assert_close(mixed, jax.tree.map(lambda a, b: 0.3 * a + 0.7 * b, first, second))


def test_a_pilot_visit_counts_every_sample_once(tiny, mesh, make_rollouts):
    pilot = make_rollouts([2] * 4)
    fresh = make_rollouts([1, 3, 2, 2], seed=1)
    rewards = PILOT_REWARDS
    step = make_step(tiny[0], mesh, pilot_samples=2)
    state = first_state(step, tiny[1])
    observed, counts, allocation = jax.jit(step.after_pilot)(state, pilot, rewards[:8])
    assert counts.sum() == 8 and counts.min() >= 1
    np.testing.assert_array_equal(observed.sums.trials[IDS], 2)
    state = state.replace(statistics=observed, counts=counts, allocation=allocation)
    state, _ = jax.jit(step.__call__)(state, Rollouts.concatenate([pilot, fresh]), rewards, NEXT_IDS)
    np.testing.assert_array_equal(state.statistics.sums.trials[IDS], [3, 5, 4, 4])
    np.testing.assert_array_equal(state.statistics.sums.successes[IDS], [2, 4, 1, 2])


def test_measured_pilots_and_fresh_samples_take_turns_over_prompts(tiny, mesh, make_rollouts):
    """With room for four norms, each of four prompts gets one, pilots before or not."""
    fresh = make_rollouts([1, 3, 2, 2], seed=1)
    step = make_step(tiny[0], mesh, pilot_samples=2, norms=GradientNormSettings("embed_tokens", 4, max_samples=4))
    state = first_state(step, tiny[1], [1, 3, 2, 2])
    rollouts = Rollouts.concatenate([make_rollouts([2] * 4), fresh])
    state, _ = jax.jit(step.__call__)(state, rollouts, np.ones(16, np.float32), NEXT_IDS)
    np.testing.assert_array_equal(state.statistics.sums.norm_count[IDS], 1)


def test_uniform_measures_no_norms(tiny, mesh, rollouts):
    step = make_step(tiny[0], mesh, allocator=make_allocator(Uniform()))
    state, metrics = run_step(step, tiny[1], rollouts)
    assert metrics.measured_norms == 0 and not state.statistics.sums.norm_count.any()
    np.testing.assert_array_equal(state.counts, 4)


def test_rejected_norms_are_measured_where_a_strategy_asks_for_them(tiny, mesh, rollouts):
    state, metrics = run_step(make_step(tiny[0], mesh, allocator=make_allocator(Cures())), tiny[1], rollouts)
    np.testing.assert_array_equal(state.statistics.sums.norm_count[IDS], [2, 1, 0, 5])
    np.testing.assert_array_equal(state.statistics.sums.rejected_norm_count[IDS], [3, 0, 4, 1])
    assert metrics.measured_norms == 16 and (state.statistics.sums.rejected_squared_norm_sum[[3, 9, 5]] > 0).all()


def test_padding_and_samples_that_are_not_kept_change_nothing(tiny, mesh, make_rollouts):
    """Two groups with both outcomes and one without, then rows without a sample: as if only the two had been drawn."""
    counts, rewards = [4, 0, 4, 4], np.array([1, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 0], np.float32)
    drawn = make_rollouts(counts, noise=0.2)
    dapo = make_step(
        tiny[0], mesh, allocator=make_allocator(Dapo(group_size=4)), updates_per_step=1, prompts_per_step=4,
        optimizer=optax.sgd(1.0),
    )  # fmt: skip
    padded = run_step(dapo, tiny[1], drawn.pad(16, group=4), np.pad(rewards, (0, 4)))
    mixed = np.array([0, 1, 2, 3, 8, 9, 10, 11])
    only = dataclasses.replace(dapo, allocator=make_allocator(Uniform()), rollouts_per_step=8)
    state, _ = run_step(only, tiny[1], drawn.take(mixed), rewards[mixed])
    assert_close(padded[0].params, state.params)
    np.testing.assert_array_equal(padded[1].counts, counts)
    np.testing.assert_array_equal(padded[0].statistics.sums.trials[IDS], counts)
    np.testing.assert_allclose(padded[1].prompt_accept_rate, [0.5, np.nan, 0, 0.75])


def test_a_step_without_anything_to_train_on_changes_no_parameter(tiny, mesh, make_rollouts):
    dapo = make_step(tiny[0], mesh, allocator=make_allocator(Dapo(group_size=4)))
    state, metrics = run_step(dapo, tiny[1], make_rollouts([4] * 4), np.zeros(16, np.float32))
    assert_close(state.params, tiny[1], atol=0)
    assert metrics.loss == 0 and metrics.gradient_norm == 0 and metrics.trained_tokens == 0


def test_diagnostics_compare_beliefs_with_what_came_of_them(tiny, mesh, rollouts):
    after, metrics = run_step(make_step(tiny[0], mesh), tiny[1], rollouts, steps=2)  # the second step's ids: NEXT_IDS
    d, p = metrics.diagnostics, metrics.allocation.accept_rate
    group = np.asarray(rollouts.group)
    assert d.brier == pytest.approx(np.mean((p[group] - REWARDS) ** 2), rel=1e-5)
    assert d.brier_constant == pytest.approx(np.var(REWARDS), rel=1e-5)
    assert d.mean_age == 1 and d.new_prompts == 0.5  # of 5, 1, 3, 2 the prompts 5 and 3 were sampled a step before
    assert d.floor_share == 1 / 16 and d.cap_share == 0  # the prompt with one sample
    allocator = make_allocator(Gvm())
    found = estimate(after.statistics, NEXT_IDS, allocator.accept_rate_prior, allocator.gradient_norm_prior)
    a = found.gradient_norm**2 / found.accept_rate
    gain = (a / 4).sum() / (a / np.array(COUNTS)).sum()
    assert d.measured_gain == pytest.approx(float(gain), rel=1e-4)
    assert -1 <= d.norm_correlation <= 1


def test_the_optimizer_is_adamw_behind_a_clip_with_warm_up():
    class Config:
        learning_rate, warmup_updates, b1, b2, weight_decay, max_gradient_norm = 0.1, 2, 0.9, 0.99, 0.01, 1.0

    optimizer = make_optimizer(Config)
    x, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    params = jnp.asarray(x, jnp.float32)
    state = optimizer.init(params)
    for t, gradient in enumerate([[3.0, 4.0], [0.3, -0.4], [0.0, 0.5]], 1):
        updates, state = optimizer.update(jnp.array(gradient), state, params)
        params = optax.apply_updates(params, updates)
        g = np.array(gradient) / max(1.0, np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8) + 0.01 * x
        x = x - 0.1 * min(1.0, (t - 1) / 2) * direction
        np.testing.assert_allclose(params, x, rtol=1e-5)


def test_no_accepted_sample_leaves_finite_numbers(tiny, mesh, rollouts):
    state, metrics = run_step(make_step(tiny[0], mesh), tiny[1], rollouts, np.zeros(16, np.float32))
    assert np.isnan(metrics.mismatch) and np.isnan(metrics.max_mismatch), "nothing was compared"
    assert np.isnan(metrics.diagnostics.norm_correlation) and np.isnan(metrics.diagnostics.mean_age)
    assert np.isnan(metrics.packing_efficiency), "nothing was computed"
    zero = np.zeros(())
    metrics = metrics.replace(mismatch=zero, max_mismatch=zero, packing_efficiency=zero, diagnostics=None)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, metrics)))
    assert metrics.trained_tokens == 0


def with_nan(rollouts, rows):
    logprobs = np.array(rollouts.logprobs)
    logprobs[rows, 0] = np.nan
    return rollouts.replace(logprobs=logprobs)


def test_an_update_that_is_not_finite_is_left_out(tiny, mesh, rollouts):
    model, params, _ = tiny
    step = make_step(model, mesh, allocator=make_allocator(Uniform()))
    order = shuffle(step, 0, step.sample_terms(rollouts, REWARDS))
    first, second = ([row for row in np.asarray(rows) if REWARDS[row] > 0] for rows in order)
    state, metrics = run_step(step, params, with_nan(rollouts, second[0]))
    assert (metrics.skipped_updates, metrics.skipped_in_a_row, state.skipped) == (1, 1, 1)
    whole, _ = run_step(step, params, with_nan(rollouts, second))
    assert_equal(state.params, whole.params)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, params)
    assert max(jax.tree.leaves(moved)) > 0 and all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    state, metrics = run_step(step, params, with_nan(rollouts, first[0]))
    assert (metrics.skipped_updates, metrics.skipped_in_a_row, state.skipped) == (1, 0, 0)


def test_updates_left_out_in_a_row_are_counted_over_steps_and_change_no_bit(tiny, mesh, rollouts):
    model, params, _ = tiny
    state, metrics = run_step(
        make_step(model, mesh, allocator=make_allocator(Uniform())), params, with_nan(rollouts, np.arange(16)), steps=3
    )
    assert (metrics.skipped_updates, metrics.skipped_in_a_row, state.skipped) == (2, 6, 6)
    assert_equal(state.params, params)
    assert_equal(state.opt_state, OPTIMIZER.init(params))


def test_norms_that_are_not_finite_are_no_observations(tiny, mesh, rollouts):
    model, params, _ = tiny
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), params)
    state, metrics = run_step(make_step(model, mesh), broken, rollouts)
    assert metrics.measured_norms == 0 and metrics.skipped_updates == 2
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.statistics))


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_rows_split_over_devices_change_nothing(tiny, rollouts, stepped, test_mesh):
    """As a run splits them: activations by rows, the output head gathered once for all chunks."""
    for mesh in (test_mesh(data=2, fsdp=2), test_mesh(fsdp=2, tensor=2)):
        model = Model(tiny[0].config, activation_sharding=batch_sharding(mesh))
        state, metrics = run_step(make_step(model, mesh), tiny[1], rollouts)
        assert_close(state.params, stepped[0].params)
        assert_close(metrics.loss, stepped[1].loss)
