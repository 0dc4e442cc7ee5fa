"""The state of a run that lives on the devices: all that a step changes and a checkpoint holds."""

from typing import Any

import jax
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Int

from gvm_jax.allocation.allocator import AllocationInfo
from gvm_jax.allocation.statistics import PromptStatistics
from gvm_jax.models.qwen2 import Model, Params
from gvm_jax.models.sharding import param_shardings, replicated


@struct.dataclass
class TrainState:
    """A pytree; sharded as `state_shardings` says."""

    step: Int[Array, ""]  # steps done
    params: Params  # float32 master copy of the policy
    opt_state: Any  # optax
    skipped: Int[Array, ""]  # updates left out in a row, up to now
    reference: Params | None  # the initial policy, kept only for a KL penalty
    statistics: PromptStatistics  # by prompt id
    prompt_ids: Int[Array, " m"]  # prompts of the coming step
    counts: Int[Array, " m"]  # their samples: allocated by the last step, or by pilots
    allocation: AllocationInfo  # the estimates that the counts rest on


def make_optimizer(config) -> optax.GradientTransformation:
    """AdamW behind a global-norm clip, with linear warm-up to a constant rate; from `config.optimizer`."""
    rate = config.learning_rate
    if config.warmup_updates:
        rate = optax.linear_schedule(0.0, rate, config.warmup_updates)
    return optax.chain(
        optax.clip_by_global_norm(config.max_gradient_norm),
        optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay),
    )


def state_shardings(
    model: Model, mesh: Mesh, optimizer: optax.GradientTransformation, abstract: TrainState
) -> TrainState:
    """Parameters, their copies and their moments by the logical axes; everything else on every device."""
    of_params, everywhere = param_shardings(model, mesh), replicated(mesh)
    return TrainState(
        step=everywhere,
        params=of_params,
        opt_state=optax.tree_map_params(
            optimizer, lambda _, sharding: sharding, abstract.opt_state, of_params,
            transform_non_params=lambda _: everywhere,
        ),
        skipped=everywhere,
        reference=None if abstract.reference is None else of_params,
        statistics=jax.tree.map(lambda _: everywhere, abstract.statistics),
        prompt_ids=everywhere,
        counts=everywhere,
        allocation=jax.tree.map(lambda _: everywhere, abstract.allocation),
    )  # fmt: skip
