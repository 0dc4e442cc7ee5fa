"""The optimizer updates of a step: samples in packed micro-batches, gradients summed over them, AdamW.

Each update takes an equal random share of the step's samples. Its loss is divided once, over all micro-batches and
devices, so one batch == k micro-batches == k devices. An update whose loss or gradient is not finite is left out.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from gvm_jax.models.logprobs import hidden_states, token_logprobs
from gvm_jax.models.qwen2 import Model, Params
from gvm_jax.models.sharding import batch_sharding, replicated
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.runtime.keys import run_key
from gvm_jax.training.objectives import LossSums, Objective, SampleTerms, Tokens
from gvm_jax.training.packing import PackedRows, pack
from gvm_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class UpdateSettings:
    """The static settings of the updates; fields are named as in the config."""

    model: Model
    mesh: Mesh
    optimizer: optax.GradientTransformation
    objective: Objective
    prompts_per_step: int
    updates_per_step: int
    micro_batch: int
    samples_per_row: int
    logprob_chunk: int
    temperature: float
    seed: int


@struct.dataclass
class Samples:
    """What every update of a step reads."""

    rollouts: Rollouts
    terms: SampleTerms
    reference: Params | None  # parameters of the reference policy of the KL penalty
    prompts_per_sample: Float[Array, ""]  # prompts over trained samples


@struct.dataclass
class Batches:
    """The samples of U updates; a scan over the updates takes the leading axis off."""

    samples: Int[Array, "U n"]  # numbers in the step's rollouts, those without a gradient too
    begins: Int[Array, "U M R L"]  # `pack`: the samples with a gradient, in M micro-batches of R rows
    old_logprobs: Float[Array, "U M R L"] | None  # before the first update; None without importance weights


@struct.dataclass
class Learner:
    """What an update changes."""

    params: Params  # float32
    opt_state: Any  # optax
    skipped: Int[Array, ""]  # updates left out in a row, up to now


@struct.dataclass
class UpdateReport:
    """Of U updates."""

    sums: LossSums  # [U]; `loss` is divided by its denominator
    gradient_norm: Float[Array, " U"]  # global norm before the clip
    finite: Bool[Array, " U"]  # the update was applied


def run_updates(
    settings: UpdateSettings, state: TrainState, rollouts: Rollouts, terms: SampleTerms
) -> tuple[Learner, UpdateReport, Float[Array, ""]]:
    """`updates_per_step` updates of the policy.

    Returns:
      Parameters and optimizer state, what the updates report, and the packing efficiency: the share of the computed
      tokens that are samples', the rest being padding (NaN where nothing is computed).
    """
    prompts_per_sample = settings.prompts_per_step / jnp.maximum(terms.trained.sum(), 1)
    data = Samples(rollouts, terms, state.reference, prompts_per_sample)
    batches, packing_efficiency = make_batches(settings, state, data)

    def update(learner, batch):
        return one_update(settings, data, learner, batch)

    learner, report = jax.lax.scan(update, Learner(state.params, state.opt_state, state.skipped), batches)
    return learner, report, packing_efficiency


def make_batches(settings: UpdateSettings, state: TrainState, data: Samples) -> tuple[Batches, Float[Array, ""]]:
    """The updates' samples in packed micro-batches, and the packing efficiency."""
    samples = shuffle(settings, state.step, data.terms)
    begins, packing_efficiency = pack_batches(settings, samples, data.rollouts, data.terms)
    old_logprobs = None
    if settings.objective.importance_cap is not None:
        old_logprobs = old_policy_logprobs(settings, state.params, begins, data.rollouts)
    return Batches(samples, begins, old_logprobs), packing_efficiency


def shuffle(settings: UpdateSettings, step_number: Int[Array, ""], terms: SampleTerms) -> Int[Array, "U n"]:
    """The updates' samples: shuffled, then dealt out in turn, those with a gradient first.

    So updates have equally many of them, and none weighs a sample more for having few.
    """
    key = run_key(settings.seed, "mini_batches", step_number)
    order = jax.random.permutation(key, terms.weight.shape[0])
    order = order[jnp.argsort(~settings.objective.has_gradient(terms)[order], stable=True)]
    return order.reshape(-1, settings.updates_per_step).T


def pack_batches(
    settings: UpdateSettings, samples: Int[Array, "U n"], rollouts: Rollouts, terms: SampleTerms
) -> tuple[Int[Array, "U M R L"], Float[Array, ""]]:
    """Where the samples with a gradient begin in the rows of micro-batches, and the packing efficiency."""
    updates, per_update = samples.shape
    rows = per_update // settings.samples_per_row
    trained = settings.objective.has_gradient(terms)
    lengths = jnp.where(trained, rollouts.prompt_lengths + rollouts.response_lengths, 0)
    # Replicated, although the rows are split over devices: a sample's place depends on all before it.
    lengths = jax.lax.with_sharding_constraint(lengths[samples], replicated(settings.mesh))
    row_length = rollouts.tokens.shape[1] * settings.samples_per_row
    begins = jax.vmap(lambda lengths, samples: pack(lengths, samples, rows, row_length))(lengths, samples)
    begins = jax.lax.with_sharding_constraint(begins, replicated(settings.mesh))
    begins = begins.reshape(updates, -1, settings.micro_batch // settings.samples_per_row, row_length)
    computed = (begins >= 0).any((2, 3)).sum() * math.prod(begins.shape[2:])
    return jax.lax.with_sharding_constraint(begins, batch_sharding(settings.mesh, leading=2)), lengths.sum() / computed


def old_policy_logprobs(
    settings: UpdateSettings, params: Params, begins: Int[Array, "U M R L"], rollouts: Rollouts
) -> Float[Array, "U M R L"]:
    """log π of the micro-batches' tokens before the first update; zeros for empty micro-batches."""

    def micro_batch(begins):
        return jax.lax.cond(
            (begins >= 0).any(),
            lambda: row_logprobs(settings, params, PackedRows.fill(begins, rollouts))[0],
            lambda: jnp.zeros(begins.shape),
        )

    return jax.lax.map(lambda one_update: jax.lax.map(micro_batch, one_update), begins)


def one_update(
    settings: UpdateSettings, data: Samples, learner: Learner, batch: Batches
) -> tuple[Learner, UpdateReport]:
    """One AdamW update on the batch of one update; the learner as it was where loss or gradient are not finite."""
    gradients, sums = gradient_sums(settings, data, learner.params, batch)
    denominator = settings.objective.denominator(
        jax.tree.map(lambda x: x[batch.samples], data.terms), data.rollouts.response_lengths[batch.samples],
        data.rollouts.max_response, data.prompts_per_sample,
    )  # fmt: skip
    # 0 where an update has no trained sample: its loss and gradients are 0 too.
    denominator = jnp.where(denominator > 0, denominator, 1.0)
    loss, gradients = sums.loss / denominator, jax.tree.map(lambda g: g / denominator, gradients)
    gradient_norm = optax.global_norm(gradients)
    # The norm is not finite either where its square leaves float32.
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
    changes, opt_state = settings.optimizer.update(gradients, learner.opt_state, learner.params)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old),
        (optax.apply_updates(learner.params, changes), opt_state), (learner.params, learner.opt_state),
    )  # fmt: skip
    learner = Learner(params, opt_state, jnp.where(finite, 0, learner.skipped + 1))
    return learner, UpdateReport(sums.replace(loss=loss), gradient_norm, finite)


def gradient_sums(settings: UpdateSettings, data: Samples, params: Params, batch: Batches) -> tuple[Params, LossSums]:
    """Gradients of the loss's numerator and the sums that the loss reports, over all micro-batches of an update."""
    cast = settings.model.cast(params)  # once for all micro-batches

    def add_micro_batch(gradients, micro_batch):
        begins, old_logprobs = micro_batch

        def add():
            rows = PackedRows.fill(begins, data.rollouts)
            more, sums = jax.grad(loss_numerator, argnums=2, has_aux=True)(settings, data, cast, rows, old_logprobs)
            return jax.tree.map(jnp.add, gradients, more), sums

        return jax.lax.cond((begins >= 0).any(), add, lambda: (gradients, LossSums.zeros()))

    zeros = jax.tree.map(jnp.zeros_like, params)
    gradients, sums = jax.lax.scan(add_micro_batch, zeros, (batch.begins, batch.old_logprobs))
    return gradients, jax.tree.map(jnp.sum, sums).replace(max_mismatch=sums.max_mismatch.max())


def loss_numerator(
    settings: UpdateSettings, data: Samples, params: Params, rows: PackedRows, old_logprobs: Float[Array, "R L"] | None
) -> tuple[Float[Array, ""], LossSums]:
    """The rows' share of the loss, before the denominator, and its sums."""
    reference = None
    if data.reference is not None:
        reference = jax.lax.stop_gradient(row_logprobs(settings, data.reference, rows)[0])
    logprobs, entropies = row_logprobs(settings, params, rows)
    sums = settings.objective.loss_sums(
        logprobs, rows.logprobs, old_logprobs, reference, Tokens(rows.sample, rows.response), data.terms,
        data.rollouts.response_lengths,
    )  # fmt: skip
    return sums.loss, sums.replace(entropy=entropies.sum())


def row_logprobs(
    settings: UpdateSettings, params: Params, rows: PackedRows
) -> tuple[Float[Array, "R L"], Float[Array, "R L"]]:
    """log π of the response tokens, and the policy's entropy at them."""
    network = settings.model.bind(params)
    hidden = hidden_states(network, rows.tokens, rows.positions, rows.sample)
    return token_logprobs(network, hidden, rows.tokens, rows.response, settings.temperature, settings.logprob_chunk)
