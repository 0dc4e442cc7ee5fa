"""The train step: one jitted program from rollouts and rewards to the new state and the next step's counts."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from gvm_jax.allocation import statistics
from gvm_jax.allocation.allocator import AllocationInfo, Allocator
from gvm_jax.allocation.diagnostics import Diagnostics, diagnose
from gvm_jax.allocation.statistics import PromptStatistics, Sums
from gvm_jax.allocation.strategies import Progress
from gvm_jax.models.logprobs import hidden_states, token_logprobs
from gvm_jax.models.qwen2 import Model, Params, Qwen2
from gvm_jax.models.sharding import batch_sharding, replicated
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.runtime.keys import run_key
from gvm_jax.training.gradient_norms import (
    GradientNormSettings,
    measured_paths,
    norms_from_taps,
    per_sample_gradient_norms,
    wanted_samples,
)
from gvm_jax.training.guard import apply_if, finite_update
from gvm_jax.training.objectives import LossSums, Objective, SampleTerms, Tokens, segment_sum
from gvm_jax.training.packing import PackedRows, pack
from gvm_jax.training.state import TrainState


@struct.dataclass
class StepMetrics:
    """What a step reports; scalars but for the arrays by prompt of the step."""

    loss: Float[Array, ""]  # mean over the step's updates
    gradient_norm: Float[Array, ""]  # global norm before the clip, mean over updates
    skipped_updates: Int[Array, ""]  # updates left out since their loss or gradient was not finite
    skipped_in_a_row: Int[Array, ""]  # of them and of steps before: the last ones, without one applied since
    clip_fraction: Float[Array, ""]  # tokens with a clipped importance ratio
    truncated_weights: Float[Array, ""] | None  # tokens with a truncated importance weight; None without correction
    kl: Float[Array, ""]  # mean estimate a token
    entropy: Float[Array, ""]  # of the policy at the trained tokens, mean, in nats
    mismatch: Float[Array, ""]  # mean |log π trainer − log π sampler| a token before the first update; NaN of none
    max_mismatch: Float[Array, ""]
    trained_tokens: Float[Array, ""]  # response tokens that were trained on
    packing_efficiency: Float[Array, ""]  # share of samples in what was computed, the rest being padding; NaN of none
    measured_norms: Int[Array, ""]  # fresh samples whose gradient norm was computed
    prompt_accept_rate: Float[Array, " m"]  # accepted/drawn of this step's fresh samples; NaN without samples
    counts: Int[Array, " m"]  # fresh samples of each prompt of this step
    allocation: AllocationInfo  # what these counts rest on
    diagnostics: Diagnostics  # what came of them


class MeasuredNorms(NamedTuple):
    """Gradient norms of a step's fresh samples."""

    wanted: Bool[Array, " R"]  # which were measured
    norms: Float[Array, " R"]


class Updates(NamedTuple):
    """What a step's U updates report."""

    sums: LossSums  # [U]; `loss` is divided by its denominator
    gradient_norms: Float[Array, " U"]  # global norms before the clip
    packing_efficiency: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """The step's static parts. `pilot_samples` is 0 in online mode."""

    model: Model
    mesh: Mesh
    optimizer: optax.GradientTransformation
    objective: Objective
    allocator: Allocator
    norms: GradientNormSettings
    prompts_per_step: int
    rollouts_per_step: int
    pilot_samples: int
    pilot_weight: float
    updates_per_step: int
    micro_batch: int
    samples_per_row: int
    logprob_chunk: int
    temperature: float
    seed: int

    @property
    def pilot_rollouts(self) -> int:
        """Rows of the step's rollouts that are pilots; they come first."""
        return self.prompts_per_step * self.pilot_samples

    @property
    def budget(self) -> int:
        """Fresh samples of a step; the most of them where a strategy samples in rounds."""
        return self.rollouts_per_step - self.pilot_rollouts

    def __call__(
        self,
        state: TrainState,
        rollouts: Rollouts,
        rewards: Float[Array, " N"],
        candidates: Int[Array, " pool"],
    ) -> tuple[TrainState, StepMetrics]:
        """Update the policy on the step's N samples and allocate the next step's.

        Args:
          state: whose `prompt_ids` were sampled; its buffers may be donated.
          rollouts: pilots first (in pilot mode), then the fresh samples; `group` indexes `state.prompt_ids`. Rows with
            group m are padding: what rounds of sampling left of the budget.
          rewards: of each row; positive = accepted.
          candidates: the prompts that the next step's are chosen from.
        """
        _, info = self.allocate(state.statistics, state.prompt_ids)  # as the last step did, for the metrics
        pilots = self.pilot_rollouts
        fresh = jax.tree.map(lambda x: x[pilots:], rollouts)
        # Pilots were added when they came in, and with them the visit's decay.
        decay = 1.0 if pilots else self.allocator.decay
        before = self.measure(state.params, fresh, rewards[pilots:])
        terms = self.sample_terms(rollouts, rewards)
        params, opt_state, skipped, updates, inside = self._update(state, rollouts, terms)
        observed, visit = self.observe(state, fresh, rewards[pilots:], decay, before or inside)

        next_prompt_ids = self.choose_prompts(observed, candidates, state.step + 1)
        next_counts, _ = self.allocate(observed, next_prompt_ids)
        counts = visit.trials.astype(jnp.int32)
        sums = updates.sums
        tokens = jnp.maximum(sums.tokens.sum(), 1.0)
        metrics = StepMetrics(
            loss=jnp.mean(sums.loss),
            gradient_norm=jnp.mean(updates.gradient_norms),
            skipped_updates=(~finite_update(sums.loss, updates.gradient_norms)).sum(),
            skipped_in_a_row=skipped,
            clip_fraction=sums.clipped.sum() / tokens,
            truncated_weights=None if self.objective.importance_cap is None else sums.truncated_weights.sum() / tokens,
            kl=sums.kl.sum() / tokens,
            entropy=sums.entropy.sum() / tokens,
            mismatch=sums.mismatch[0] / sums.tokens[0],
            max_mismatch=jnp.where(sums.tokens[0] > 0, sums.max_mismatch[0], jnp.nan),
            trained_tokens=sums.tokens.sum(),
            packing_efficiency=updates.packing_efficiency,
            measured_norms=(visit.norm_count + visit.rejected_norm_count).sum().astype(jnp.int32),
            prompt_accept_rate=visit.successes / visit.trials,
            counts=counts,
            allocation=info,
            diagnostics=diagnose(
                self.allocator, info, state.statistics, observed, state.prompt_ids, visit, state.step, self.budget
            ),
        )
        state = state.replace(
            step=state.step + 1, params=params, opt_state=opt_state, skipped=skipped, statistics=observed,
            prompt_ids=next_prompt_ids, counts=next_counts,
        )  # fmt: skip
        return state, metrics

    def after_pilot(
        self, state: TrainState, rollouts: Rollouts, rewards: Float[Array, " N"]
    ) -> tuple[PromptStatistics, Int[Array, " m"]]:
        """Statistics and counts of the step's prompts once their pilots are known; a jitted program of its own."""
        measured = self.measure(state.params, rollouts, rewards)
        observed, _ = self.observe(state, rollouts, rewards, self.allocator.decay, measured)
        counts, _ = self.allocate(observed, state.prompt_ids)
        return observed, counts

    def more_counts(self, progress: Progress) -> Int[Array, " m"]:
        """Samples of each prompt in the next round, for strategies with rounds; a jitted program of its own."""
        left = self.budget - progress.trials.sum()
        return self.allocator.more_counts(progress, jnp.ones(progress.trials.shape, bool), left)

    def choose_prompts(
        self, prompt_statistics: PromptStatistics, candidates: Int[Array, " pool"], step: Int[Array, ""]
    ) -> Int[Array, " m"]:
        """The prompts of a step among its candidates."""
        key = run_key(self.seed, "prompts", step)
        return self.allocator.choose_prompts(prompt_statistics, candidates, self.prompts_per_step, key)

    def sample_terms(self, rollouts: Rollouts, rewards: Float[Array, " N"]) -> SampleTerms:
        """Advantages and weights of the step's samples, 0 for those that are not trained on."""
        m, pilots, samples = self.prompts_per_step, self.pilot_rollouts, rollouts.group.shape[0]
        segments, num_segments, mixture_weight = rollouts.group, m, jnp.ones(samples)
        if pilots:
            # Pilots and fresh samples of a prompt are two estimates, mixed by a constant: pooled they would be biased,
            # because the number of fresh samples depends on the pilots' rewards.
            is_fresh = jnp.arange(samples) >= pilots
            segments, num_segments = rollouts.group + m * is_fresh, 2 * m
            mixture_weight = jnp.where(is_fresh, 1.0 - self.pilot_weight, self.pilot_weight)
        strategy = self.allocator.strategy
        kept = strategy.kept(rewards, segments, num_segments)
        counted = kept if strategy.baseline == "kept" else rollouts.group < m
        trained = kept & rollouts.stopped if self.objective.mask_truncated else kept
        return self.objective.sample_terms(rewards, segments, num_segments, mixture_weight, counted, trained)

    def allocate(
        self, prompt_statistics: PromptStatistics, prompt_ids: Int[Array, " m"]
    ) -> tuple[Int[Array, " m"], AllocationInfo]:
        """Samples of each prompt (in the first round): all of the step's rollouts but the pilots."""
        valid = jnp.ones(prompt_ids.shape, bool)
        return self.allocator.next_counts(prompt_statistics, prompt_ids, valid, self.budget)

    def observe(
        self,
        state: TrainState,
        rollouts: Rollouts,
        rewards: Float[Array, " R"],
        decay: float,
        measured: MeasuredNorms | None,
    ) -> tuple[PromptStatistics, Sums]:
        """The statistics with some rollouts of the step added, and what was added of each prompt."""

        def total(values):
            return segment_sum(values.astype(jnp.float32), rollouts.group, self.prompts_per_step)

        accepted = rewards > 0
        visit = Sums.zeros(self.prompts_per_step).replace(
            successes=total(accepted), trials=total(jnp.ones_like(rewards)),
            response_tokens=total(rollouts.response_lengths),
        )  # fmt: skip
        if measured:
            finite = jnp.isfinite(measured.norms**2)
            wanted, norms = measured.wanted & finite, jnp.where(finite, measured.norms, 0.0)
            good, bad = wanted & accepted, wanted & ~accepted
            visit = visit.replace(
                norm_sum=total(norms * good), squared_norm_sum=total(norms**2 * good), norm_count=total(good),
                rejected_squared_norm_sum=total(norms**2 * bad), rejected_norm_count=total(bad),
            )  # fmt: skip
        return statistics.update(state.statistics, state.prompt_ids, visit, decay, state.step), visit

    def measure(self, params: Params, rollouts: Rollouts, rewards: Float[Array, " R"]) -> MeasuredNorms | None:
        """Gradient norms that the strategy asks for, in a pass of their own; None if the update gives them, or none."""
        wanted_norms = self.allocator.strategy.norms
        if wanted_norms == "none" or self.norms.method == "update":
            return None
        wanted = (rollouts.group < self.prompts_per_step) & ((rewards > 0) | (wanted_norms == "all"))
        wanted = wanted_samples(wanted, rollouts.group, self.norms.max_samples)
        norms = per_sample_gradient_norms(
            self.model, params, rollouts, wanted, self.norms, self.temperature, self.logprob_chunk
        )
        return MeasuredNorms(wanted, norms)

    def _update(
        self, state: TrainState, rollouts: Rollouts, terms: SampleTerms
    ) -> tuple[Params, PyTree, Int[Array, ""], Updates, MeasuredNorms | None]:
        """`updates_per_step` optimizer updates, each on an equal random share of the rows; those not finite left out.

        With `gradient_norms.method` = "update" the first of them also gives the norms of its rows.
        """
        order = self._order(state, terms)
        begins, useful = self._pack(order, rollouts, terms)
        old = None
        if self.objective.importance_cap is not None:
            old = self._old_logprobs(state.params, begins, rollouts)
        prompts_per_sample = self.prompts_per_step / jnp.maximum(terms.trained.sum(), 1)
        samples = terms.weight.shape[0]
        measures = self.norms.method == "update" and self.allocator.strategy.norms != "none"

        def loss_of(logprobs, reference, rows: PackedRows, old) -> LossSums:
            tokens = Tokens(rows.sample, rows.response)
            return self.objective.loss_sums(
                logprobs, rows.logprobs, old, reference, tokens, terms, rollouts.response_lengths
            )

        def loss(params, tap, rows: PackedRows, old: Float[Array, "R L"] | None):
            reference = None
            if state.reference is not None:
                reference = jax.lax.stop_gradient(self._logprobs(state.reference, rows))
            module = self.model.bind(params)
            hidden = hidden_states(module, rows.tokens, rows.positions, rows.sample, tap)
            logprobs, entropies = self._of_tokens(module, hidden, rows)
            sums = loss_of(logprobs, reference, rows, old).replace(entropy=entropies.sum())
            return sums.loss, (sums, jax.lax.stop_gradient((logprobs, hidden)))

        def row_norms(params, taps, logprobs, hidden, rows: PackedRows, old) -> Float[Array, " N"]:
            """Norms of the samples with a gradient, 0 of others, from the taps' part of the loss's gradient."""
            slopes = jax.grad(lambda x: loss_of(x, None, rows, old).loss)(logprobs)
            # At ratio 1 a sample's tokens have the same slope; the sampler's rounding moves it a little: so the mean.
            slope = segment_sum(slopes.ravel(), rows.sample.ravel(), samples)
            slope = slope / jnp.maximum(rollouts.response_lengths, 1)
            divisor = jnp.where(slope == 0, 1.0, slope).at[rows.sample].get(mode="fill", fill_value=1.0)
            paths = measured_paths(params, self.norms)
            module = self.model.bind(params)
            norms = norms_from_taps(module, paths, rows, hidden, taps / divisor[..., None], self.temperature, samples)
            return jnp.where(slope == 0, 0.0, norms)

        def micro_step(carry, micro_batch):
            params, gradients, norms, first = carry
            begins, old = micro_batch

            def train():
                rows = PackedRows.fill(begins, rollouts)
                tap = jnp.zeros((*rows.tokens.shape, self.model.config.hidden_size)) if measures else None
                (more, taps), (sums, known) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, tap, rows, old)
                found = norms
                if measures:
                    found = jax.lax.cond(
                        first, lambda: norms + row_norms(params, taps, *known, rows, old), lambda: norms
                    )  # fmt: skip
                return jax.tree.map(jnp.add, gradients, more), found, sums

            def skip():
                return gradients, norms, LossSums(*[jnp.zeros(())] * len(LossSums.__dataclass_fields__))

            gradients, norms, sums = jax.lax.cond((begins >= 0).any(), train, skip)
            return (params, gradients, norms, first), sums

        def update(carry, xs):
            (params, opt_state, skipped, norms), (rows, begins, old, first) = carry, xs
            zeros = jax.tree.map(jnp.zeros_like, params)
            (_, gradients, norms, _), per_micro = jax.lax.scan(
                micro_step, (self.model.cast(params), zeros, norms, first), (begins, old)
            )  # fmt: skip
            sums = jax.tree.map(jnp.sum, per_micro).replace(max_mismatch=per_micro.max_mismatch.max())
            denominator = self.objective.denominator(
                jax.tree.map(lambda x: x[rows], terms), rollouts.response_lengths[rows], rollouts.max_response,
                prompts_per_sample,
            )  # fmt: skip
            # 0 where an update has no trained row: its loss and gradients are 0 too.
            denominator = jnp.where(denominator > 0, denominator, 1.0)
            gradients = jax.tree.map(lambda g: g / denominator, gradients)
            gradient_norm = optax.global_norm(gradients)
            finite = finite_update(sums.loss, gradient_norm)
            params, opt_state = apply_if(finite, self.optimizer, gradients, opt_state, params)
            done = sums.replace(loss=sums.loss / denominator), gradient_norm
            return (params, opt_state, jnp.where(finite, 0, skipped + 1), norms), done

        first = jnp.arange(self.updates_per_step) == 0
        norms = jnp.zeros(samples) if measures else None
        (params, opt_state, skipped, norms), (sums, gradient_norms) = jax.lax.scan(
            update, (state.params, state.opt_state, state.skipped, norms), (order, begins, old, first)
        )
        measured = MeasuredNorms(norms > 0, norms) if measures else None
        return params, opt_state, skipped, Updates(sums, gradient_norms, useful), measured

    def _old_logprobs(
        self, params: Params, begins: Int[Array, "U M R L"], rollouts: Rollouts
    ) -> Float[Array, "U M R L"]:
        """log π of the micro-batches' tokens before the first update; zeros for empty ones."""

        def micro_batch(begins):
            return jax.lax.cond(
                (begins >= 0).any(),
                lambda: self._logprobs(params, PackedRows.fill(begins, rollouts)),
                lambda: jnp.zeros(begins.shape),
            )

        return jax.lax.map(lambda one_update: jax.lax.map(micro_batch, one_update), begins)

    def _order(self, state: TrainState, terms: SampleTerms) -> Int[Array, "U n"]:
        """The updates' samples: shuffled, then dealt out in turn, those with a gradient first.

        So updates have equally many of them, and none weighs a sample more for having few.
        """
        key = run_key(self.seed, "mini_batches", state.step)
        order = jax.random.permutation(key, terms.weight.shape[0])
        order = order[jnp.argsort(~self.objective.has_gradient(terms)[order], stable=True)]
        return order.reshape(-1, self.updates_per_step).T

    def _pack(
        self, order: Int[Array, "U n"], rollouts: Rollouts, terms: SampleTerms
    ) -> tuple[Int[Array, "U M R L"], Float[Array, ""]]:
        """The updates' samples with a gradient in micro-batches of rows, and the share of tokens that are theirs."""
        updates, samples = order.shape
        rows = samples // self.samples_per_row
        lengths = jnp.where(self.objective.has_gradient(terms), rollouts.prompt_lengths + rollouts.response_lengths, 0)
        # Replicated, although the rows are split over devices: a sample's place depends on all before it.
        lengths = jax.lax.with_sharding_constraint(lengths[order], replicated(self.mesh))
        length = rollouts.tokens.shape[1] * self.samples_per_row
        begins = jax.vmap(lambda lengths, order: pack(lengths, order, rows, length))(lengths, order)
        begins = jax.lax.with_sharding_constraint(begins, replicated(self.mesh))
        begins = begins.reshape(updates, -1, self.micro_batch // self.samples_per_row, length)
        computed = (begins >= 0).any((2, 3)).sum() * math.prod(begins.shape[2:])
        return jax.lax.with_sharding_constraint(begins, batch_sharding(self.mesh, leading=2)), lengths.sum() / computed

    def _logprobs(self, params: Params, rows: PackedRows) -> Float[Array, "R L"]:
        """log π of the response tokens."""
        module = self.model.bind(params)
        hidden = hidden_states(module, rows.tokens, rows.positions, rows.sample)
        return self._of_tokens(module, hidden, rows)[0]

    def _of_tokens(
        self, module: Qwen2, hidden: Float[Array, "R L D"], rows: PackedRows
    ) -> tuple[Float[Array, "R L"], Float[Array, "R L"]]:
        return token_logprobs(module, hidden, rows.tokens, rows.response, self.temperature, self.logprob_chunk)
