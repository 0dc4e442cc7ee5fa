"""The train step: one jitted program from rollouts and rewards to the new state and the next step's counts."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.allocation import statistics
from gvm_jax.allocation.allocator import AllocationInfo, Allocator
from gvm_jax.allocation.diagnostics import Diagnostics, diagnose
from gvm_jax.allocation.statistics import PromptStatistics, Sums
from gvm_jax.allocation.strategy import Progress
from gvm_jax.models.qwen2 import Model, Params
from gvm_jax.models.sharding import BATCH_AXES, replicated
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.runtime.cpu import compiler_options
from gvm_jax.runtime.keys import run_key
from gvm_jax.training.advantages import segment_sum
from gvm_jax.training.batch_sizes import check_micro_batch
from gvm_jax.training.gradient_norms import (
    GradientNormSettings,
    measured_parts,
    per_sample_gradient_norms,
    wanted_samples,
)
from gvm_jax.training.objectives import Objective, SampleTerms
from gvm_jax.training.state import TrainState, make_optimizer, state_shardings
from gvm_jax.training.update import UpdateReport, UpdateSettings, run_updates


@struct.dataclass
class StepMetrics:
    """What a step reports; scalars but for the arrays by prompt of the step."""

    loss: Float[Array, ""]  # mean over the step's updates
    gradient_norm: Float[Array, ""]  # global norm before the clip, mean over updates
    skipped_updates: Int[Array, ""]  # updates left out since their loss or gradient was not finite
    skipped_in_a_row: Int[Array, ""]  # the last ones of them and of earlier steps, without one applied since
    clip_fraction: Float[Array, ""]  # tokens with a clipped importance ratio
    truncated_weights: Float[Array, ""] | None  # tokens with a truncated importance weight; None without correction
    kl: Float[Array, ""]  # mean estimate a token
    entropy: Float[Array, ""]  # of the policy at the trained tokens, mean, in nats
    mismatch: Float[Array, ""]  # mean |log π trainer − log π sampler| a token before the first update; NaN of none
    max_mismatch: Float[Array, ""]
    trained_tokens: Float[Array, ""]  # response tokens that were trained on
    packing_efficiency: Float[Array, ""]  # share of the computed tokens that is no padding; NaN of none
    measured_norms: Int[Array, ""]  # fresh samples whose gradient norm was computed
    prompt_accept_rate: Float[Array, " m"]  # accepted/drawn of this step's fresh samples; NaN without samples
    counts: Int[Array, " m"]  # fresh samples of each prompt of this step
    allocation: AllocationInfo  # the estimates that these counts rest on
    diagnostics: Diagnostics  # those estimates against the samples


class MeasuredNorms(NamedTuple):
    """Gradient norms of some of R samples."""

    wanted: Bool[Array, " R"]  # which were measured
    norms: Float[Array, " R"]


class JittedStep(NamedTuple):
    """The compiled forms of `TrainStep`'s functions, by their names."""

    initial_state: Callable
    train_step: Callable  # `TrainStep.__call__`
    after_pilot: Callable
    next_round: Callable
    response_length: Callable  # `statistics.response_length`


@dataclasses.dataclass(frozen=True)
class TrainStep(UpdateSettings):
    """The step's settings, its functions and their compiled forms. Nothing is compiled before its first call.

    `__call__`, `after_pilot`, `next_round` and `initial_state` are pure; `jitted`, `abstract_state` and `shardings`
    are what a run calls and a planner compiles for devices that are not there. Fields are named as in the config.
    """

    allocator: Allocator
    norms: GradientNormSettings
    num_prompts: int  # rows of the training data; statistics are arrays of this size
    candidates_per_step: int  # prompts that a step's are chosen from
    rollouts_per_step: int
    pilot_samples: int  # 0 in online mode
    pilot_weight: float
    max_prompt_tokens: int
    max_new_tokens: int

    @classmethod
    def from_config(cls, config, model: Model, mesh: Mesh, num_prompts: int) -> "TrainStep":
        """The step of a validated config.

        Raises:
          ConfigError: fields that do not suit the mesh, the model or the strategy.
        """
        check_micro_batch(config, math.prod(mesh.shape[axis] for axis in BATCH_AXES))
        norms = GradientNormSettings.from_config(config.gradient_norms)
        measured_parts(model.abstract_params, norms)  # the names must match
        return cls(
            model=model,
            mesh=mesh,
            optimizer=make_optimizer(config.optimizer),
            objective=Objective.from_config(config.objective, corrected=config.rollout.weight_dtype == "int8"),
            allocator=Allocator.from_config(config.allocation),
            norms=norms,
            num_prompts=num_prompts,
            prompts_per_step=config.prompts_per_step,
            candidates_per_step=config.prompts_per_step * config.allocation.prompt_pool,
            rollouts_per_step=config.rollouts_per_step,
            pilot_samples=config.allocation.pilot_samples if config.allocation.mode == "pilot" else 0,
            pilot_weight=config.allocation.pilot_weight,
            updates_per_step=config.optimizer.updates_per_step,
            micro_batch=config.optimizer.micro_batch,
            samples_per_row=config.optimizer.samples_per_row,
            logprob_chunk=config.optimizer.logprob_chunk,
            temperature=config.rollout.temperature,
            max_prompt_tokens=config.data.max_prompt_tokens,
            max_new_tokens=config.rollout.max_new_tokens,
            seed=config.seed,
        )

    @property
    def pilot_rollouts(self) -> int:
        """Rows of the step's rollouts that are pilots; they come first."""
        return self.prompts_per_step * self.pilot_samples

    @property
    def budget(self) -> int:
        """Fresh samples of a step; the most of them where a strategy samples in rounds."""
        return self.rollouts_per_step - self.pilot_rollouts

    # The step, pure.

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
          rollouts: pilots first (in pilot mode), then the fresh samples; `group` indexes `state.prompt_ids`. Rows of
            group m are padding: what rounds of sampling left of the budget.
          rewards: of each row; positive = accepted.
          candidates: the prompts that the next step's are chosen from.
        """
        pilots = self.pilot_rollouts
        fresh, fresh_rewards = jax.tree.map(lambda x: x[pilots:], (rollouts, rewards))
        norms = self.measure(state.params, fresh, fresh_rewards)
        learner, report, packing_efficiency = run_updates(self, state, rollouts, self.sample_terms(rollouts, rewards))
        # Pilots were added when they came in, and with them the visit's decay.
        decay = 1.0 if pilots else self.allocator.decay
        observed, visit = self.observe(state, fresh, fresh_rewards, decay, norms)
        prompt_ids = self.choose_prompts(observed, candidates, state.step + 1)
        counts, allocation = self.allocate(observed, prompt_ids)
        diagnostics = diagnose(
            self.allocator, state.allocation, state.statistics, observed, state.prompt_ids, visit, state.step,
            self.budget,
        )  # fmt: skip
        metrics = self.metrics(state, visit, report, packing_efficiency, learner.skipped, diagnostics)
        return TrainState(
            step=state.step + 1, params=learner.params, opt_state=learner.opt_state, skipped=learner.skipped,
            reference=state.reference, statistics=observed, prompt_ids=prompt_ids, counts=counts,
            allocation=allocation,
        ), metrics  # fmt: skip

    def initial_state(self, params: Params, candidates: Int[Array, " pool"]) -> TrainState:
        """The state before the first step, with these float32 parameters and the first step's candidates."""
        prompt_statistics = statistics.init(self.num_prompts)
        prompt_ids = self.choose_prompts(prompt_statistics, candidates, jnp.int32(0))
        counts, allocation = self.allocate(prompt_statistics, prompt_ids)
        has_penalty = self.objective.kl_coefficient > 0
        return TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=self.optimizer.init(params),
            skipped=jnp.int32(0),
            reference=jax.tree.map(jnp.copy, params) if has_penalty else None,
            statistics=prompt_statistics,
            prompt_ids=prompt_ids,
            counts=counts,
            allocation=allocation,
        )

    def after_pilot(
        self, state: TrainState, rollouts: Rollouts, rewards: Float[Array, " N"]
    ) -> tuple[PromptStatistics, Int[Array, " m"], AllocationInfo]:
        """The statistics that the step's pilots lead to, and the counts that these allocate, with their estimates."""
        norms = self.measure(state.params, rollouts, rewards)
        observed, _ = self.observe(state, rollouts, rewards, self.allocator.decay, norms)
        return observed, *self.allocate(observed, state.prompt_ids)

    def next_round(self, progress: Progress) -> Int[Array, " m"]:
        """Samples of each prompt in the next round, for strategies with rounds; all 0 = finished."""
        return self.allocator.more_counts(progress, self.budget - progress.trials.sum())

    # Its parts.

    def choose_prompts(
        self, prompt_statistics: PromptStatistics, candidates: Int[Array, " pool"], step: Int[Array, ""]
    ) -> Int[Array, " m"]:
        """The prompts of a step among its candidates."""
        key = run_key(self.seed, "prompts", step)
        return self.allocator.choose_prompts(prompt_statistics, candidates, self.prompts_per_step, key)

    def allocate(
        self, prompt_statistics: PromptStatistics, prompt_ids: Int[Array, " m"]
    ) -> tuple[Int[Array, " m"], AllocationInfo]:
        """Samples of each prompt (in the first round): all of the step's rollouts but the pilots."""
        return self.allocator.next_counts(prompt_statistics, prompt_ids, self.budget)

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

    def measure(self, params: Params, rollouts: Rollouts, rewards: Float[Array, " R"]) -> MeasuredNorms | None:
        """The gradient norms that the strategy asks for; None if it asks for none."""
        asked = self.allocator.strategy.norms
        if asked == "none":
            return None
        wanted = (rollouts.group < self.prompts_per_step) & ((rewards > 0) | (asked == "all"))
        wanted = wanted_samples(wanted, rollouts.group, self.norms.max_samples)
        norms = per_sample_gradient_norms(
            self.model, params, rollouts, wanted, self.norms, self.temperature, self.logprob_chunk
        )
        return MeasuredNorms(wanted, norms)

    def observe(
        self,
        state: TrainState,
        rollouts: Rollouts,
        rewards: Float[Array, " R"],
        decay: float,
        measured: MeasuredNorms | None,
    ) -> tuple[PromptStatistics, Sums]:
        """The statistics with some rollouts of the step added, and the sums that were added of each prompt."""

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

    def metrics(
        self,
        state: TrainState,
        visit: Sums,
        report: UpdateReport,
        packing_efficiency: Float[Array, ""],
        skipped_in_a_row: Int[Array, ""],
        diagnostics: Diagnostics,
    ) -> StepMetrics:
        """The metrics of the step that began with `state`."""
        sums = report.sums
        tokens = jnp.maximum(sums.tokens.sum(), 1.0)
        return StepMetrics(
            loss=jnp.mean(sums.loss),
            gradient_norm=jnp.mean(report.gradient_norm),
            skipped_updates=(~report.finite).sum(),
            skipped_in_a_row=skipped_in_a_row,
            clip_fraction=sums.clipped.sum() / tokens,
            truncated_weights=None if self.objective.importance_cap is None else sums.truncated_weights.sum() / tokens,
            kl=sums.kl.sum() / tokens,
            entropy=sums.entropy.sum() / tokens,
            mismatch=sums.mismatch[0] / sums.tokens[0],
            max_mismatch=jnp.where(sums.tokens[0] > 0, sums.max_mismatch[0], jnp.nan),
            trained_tokens=sums.tokens.sum(),
            packing_efficiency=packing_efficiency,
            measured_norms=(visit.norm_count + visit.rejected_norm_count).sum().astype(jnp.int32),
            prompt_accept_rate=visit.successes / visit.trials,
            counts=visit.trials.astype(jnp.int32),
            allocation=state.allocation,
            diagnostics=diagnostics,
        )

    # Its compiled forms.

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            self._shapes, self.shardings,
        )  # fmt: skip

    @functools.cached_property
    def shardings(self) -> TrainState:
        """Shardings of the state over the mesh."""
        return state_shardings(self.model, self.mesh, self.optimizer, self._shapes)

    @functools.cached_property
    def _shapes(self) -> TrainState:
        return jax.eval_shape(self.initial_state, self.model.abstract_params, self.abstract_candidates)

    @property
    def abstract_candidates(self) -> jax.ShapeDtypeStruct:
        """int32[pool]."""
        return jax.ShapeDtypeStruct((self.candidates_per_step,), jnp.int32)

    @functools.cached_property
    def jitted(self) -> JittedStep:
        """The pure functions over the mesh; state and parameters are donated where they are replaced."""
        everywhere = replicated(self.mesh)
        jit = functools.partial(jax.jit, compiler_options=compiler_options(self.mesh))
        return JittedStep(
            initial_state=jit(self.initial_state, donate_argnums=0, out_shardings=self.shardings),
            train_step=jit(self.__call__, donate_argnums=0, out_shardings=(self.shardings, everywhere)),
            after_pilot=jit(self.after_pilot, out_shardings=everywhere),
            next_round=jit(self.next_round, out_shardings=everywhere),
            response_length=jit(statistics.response_length, out_shardings=everywhere),
        )

    def lower(self) -> dict[str, jax.stages.Lowered]:
        """The programs that a step of this config runs, by name, lowered for the shapes that it runs them with."""
        lowered = {}
        if self.pilot_samples:
            batch = self._abstract_batch(self.pilot_rollouts)
            lowered["pilot"] = self.jitted.after_pilot.lower(self.abstract_state, *batch)
        batch = self._abstract_batch(self.rollouts_per_step)
        train_step = self.jitted.train_step.lower(self.abstract_state, *batch, self.abstract_candidates)
        return lowered | {"train step": train_step}

    def _abstract_batch(self, rows: int) -> tuple[Rollouts, jax.ShapeDtypeStruct]:
        def array(dtype, *shape):
            return jax.ShapeDtypeStruct((rows, *shape), dtype)

        rollouts = Rollouts(
            tokens=array(jnp.int32, self.max_prompt_tokens + self.max_new_tokens),
            prompt_lengths=array(jnp.int32),
            response_lengths=array(jnp.int32),
            logprobs=array(jnp.float32, self.max_new_tokens),
            group=array(jnp.int32),
            stopped=array(jnp.bool_),
        )
        return rollouts, array(jnp.float32)
