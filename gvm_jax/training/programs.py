"""A training step's jitted programs and the state that they take, from a config and shapes alone.

A run feeds them data; the planner compiles the same programs for devices that are not there.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int

from gvm_jax.allocation import statistics
from gvm_jax.allocation.allocator import Allocator
from gvm_jax.models.qwen2 import Model, Params
from gvm_jax.models.sharding import BATCH_AXES, replicated
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.runtime.mesh import compiler_options
from gvm_jax.training.batch_sizes import check_micro_batch
from gvm_jax.training.gradient_norms import GradientNormSettings, measured_paths
from gvm_jax.training.objectives import Objective
from gvm_jax.training.state import TrainState, init_state, make_optimizer, state_shardings
from gvm_jax.training.step import TrainStep


class StepPrograms:
    """What runs on the devices between two rounds of sampling. Nothing is allocated or compiled before its first call.

    Attributes:
      step: the static parts and the plain functions.
      abstract_state: shapes, dtypes and shardings of the state.
      shardings: of the state.
      train_step: (state, rollouts, rewards, candidates) -> (state, metrics); the state is donated.
      after_pilot: (state, pilot rollouts, rewards) -> (statistics, counts), in pilot mode.
      more_counts: progress -> counts of the next round, for strategies with rounds.
      response_length: (statistics, prompt ids) -> expected tokens of a response.
      new_state: (parameters, candidates) -> the state before the first step; the parameters are donated.

    Args:
      config: validated.
      model: the policy.
      mesh: its devices.
      num_prompts: rows of the training data; statistics are arrays of this size.

    Raises:
      ConfigError: fields that do not suit the mesh, the model or the strategy.
    """

    def __init__(self, config, model: Model, mesh: Mesh, num_prompts: int):
        check_micro_batch(config, math.prod(mesh.shape[axis] for axis in BATCH_AXES))
        norms = GradientNormSettings.from_config(config.gradient_norms)
        measured_paths(model.abstract_params, norms)  # the names must match
        self._config, self._num_prompts = config, num_prompts
        pilots = config.allocation.pilot_samples if config.allocation.mode == "pilot" else 0
        self.step = TrainStep(
            model=model,
            mesh=mesh,
            optimizer=make_optimizer(config.optimizer),
            objective=Objective.from_config(config.objective, corrected=config.rollout.weight_dtype == "int8"),
            allocator=Allocator.from_config(config.allocation),
            norms=norms,
            prompts_per_step=config.prompts_per_step,
            rollouts_per_step=config.rollouts_per_step,
            pilot_samples=pilots,
            pilot_weight=config.allocation.pilot_weight,
            updates_per_step=config.optimizer.updates_per_step,
            micro_batch=config.optimizer.micro_batch,
            samples_per_row=config.optimizer.samples_per_row,
            logprob_chunk=config.optimizer.logprob_chunk,
            temperature=config.rollout.temperature,
            seed=config.seed,
        )
        abstract = jax.eval_shape(self._new_state, model.abstract_params, self.abstract_candidates)
        self.shardings = state_shardings(model, mesh, self.step.optimizer, abstract)
        self.abstract_state: TrainState = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract, self.shardings
        )
        everywhere = replicated(mesh)
        jit = functools.partial(jax.jit, compiler_options=compiler_options(mesh))
        self.new_state = jit(self._new_state, donate_argnums=0, out_shardings=self.shardings)
        self.train_step = jit(self.step.__call__, donate_argnums=0, out_shardings=(self.shardings, everywhere))
        self.response_length = jit(statistics.response_length, out_shardings=everywhere)
        self.after_pilot = jit(self.step.after_pilot, out_shardings=everywhere)
        self.more_counts = jit(self.step.more_counts, out_shardings=everywhere)

    @property
    def abstract_candidates(self) -> jax.ShapeDtypeStruct:
        """int32[pool]: the prompts that a step's are chosen from."""
        config = self._config
        return jax.ShapeDtypeStruct((config.prompts_per_step * config.allocation.prompt_pool,), jnp.int32)

    def lower(self) -> dict[str, jax.stages.Lowered]:
        """The programs that a step of this config runs, by name, lowered for the shapes that it runs them with."""
        pilots, rows = self.step.pilot_rollouts, self.step.rollouts_per_step
        lowered = {}
        if pilots:
            lowered["pilot"] = self.after_pilot.lower(self.abstract_state, *self._abstract_batch(pilots))
        batch = self._abstract_batch(rows)
        lowered["train step"] = self.train_step.lower(self.abstract_state, *batch, self.abstract_candidates)
        return lowered

    def _abstract_batch(self, rows: int) -> tuple[Rollouts, jax.ShapeDtypeStruct]:
        prompt, response = self._config.data.max_prompt_tokens, self._config.rollout.max_new_tokens

        def array(dtype, *shape):
            return jax.ShapeDtypeStruct((rows, *shape), dtype)

        rollouts = Rollouts(
            tokens=array(jnp.int32, prompt + response),
            prompt_lengths=array(jnp.int32),
            response_lengths=array(jnp.int32),
            logprobs=array(jnp.float32, response),
            group=array(jnp.int32),
            stopped=array(jnp.bool_),
        )
        return rollouts, array(jnp.float32)

    def _new_state(self, params: Params, candidates: Int[Array, " pool"]) -> TrainState:
        ids = jnp.zeros(self._config.prompts_per_step, jnp.int32)
        state = init_state(
            params, self.step.optimizer, self._num_prompts, ids, ids,
            keep_reference=self._config.objective.kl_coefficient > 0,
        )  # fmt: skip
        ids = self.step.choose_prompts(state.statistics, candidates, state.step)
        return state.replace(prompt_ids=ids, counts=self.step.allocate(state.statistics, ids)[0])
