"""A training step without its update: the only file of the lab that calls `TrainStep`, `Trainer` and `Sampler`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from gvm_jax.allocation.allocator import Allocator
from gvm_jax.allocation.statistics import PromptStatistics
from gvm_jax.allocation.strategy import Progress, Strategy
from gvm_jax.config import ConfigError, OnResume, flat, on_resume
from gvm_jax.rollout.policy import Policy
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.runtime.checkpoint_files import restore_subtree
from gvm_jax.runtime.checksums import checksum
from gvm_jax.runtime.keys import run_key
from gvm_jax.training.objectives import Objective, Tokens
from gvm_jax.training.step import TrainStep
from gvm_jax.training.trainer import Trainer, describe_run


def make_step(config: ConfigDict, prompts: int) -> TrainStep:
    """A config's objective, allocation and pilots for steps of `prompts` prompts; without model, optimizer and mesh."""
    allocation = config.allocation
    without_model = dict.fromkeys(field.name for field in dataclasses.fields(TrainStep))
    return TrainStep(
        **without_model
        | {
            "objective": Objective.from_config(config.objective, corrected=False),
            "allocator": Allocator.from_config(allocation),
            "prompts_per_step": prompts,
            "pilot_samples": allocation.pilot_samples if allocation.mode == "pilot" else 0,
            "pilot_weight": allocation.pilot_weight,
        }
    )


def with_strategy(step: TrainStep, strategy: Strategy) -> TrainStep:
    """The step with another strategy, and without pilots."""
    return dataclasses.replace(step, allocator=dataclasses.replace(step.allocator, strategy=strategy), pilot_samples=0)


def allocate(
    step: TrainStep, known: PromptStatistics, budget: Int[Array, ""]
) -> tuple[Int[Array, " m"], Float[Array, " m"]]:
    """Counts of all prompts, of the first round if the strategy has several; and the accept rates they rest on."""
    m = step.prompts_per_step
    counts, info = step.allocator.next_counts(known, jnp.arange(m), budget)
    return counts, info.accept_rate


def next_round(
    step: TrainStep, successes: Int[Array, " m"], trials: Int[Array, " m"], rounds: Int[Array, ""], left: Int[Array, ""]
) -> Int[Array, " m"]:
    """Counts of another round by the results so far; 0 where the strategy wants no more, or has one round only."""
    if not step.allocator.strategy.rounds:
        return jnp.zeros_like(trials)
    return step.allocator.more_counts(Progress(successes, trials, rounds), left)


def sample_coefficients(
    step: TrainStep,
    group: Int[Array, " N"],
    rewards: Float[Array, " N"],
    lengths: Int[Array, " N"],
    stopped: Bool[Array, " N"],
    max_response: int,
) -> Float[Array, " N"]:
    """c_j of a step's rows: minus the derivative of the loss by log π of a token, at the policy that sampled them.

    It is the same for all tokens of a response. So the first token's is taken, and the gradient of a response's summed
    log-probabilities is all that is needed beside it. A KL penalty is left out.

    Args:
      step: its objective, strategy and pilots count.
      group: prompt of each row, m = `prompts_per_step` for padding; pilots come first.
      rewards: of the rows.
      lengths: response tokens.
      stopped: ended by a stop token.
      max_response: the length limit.
    """
    objective, first_token = step.objective, jnp.zeros((len(group), 1))
    rollouts = Rollouts(
        tokens=jnp.zeros((len(group), 0), jnp.int32), prompt_lengths=jnp.zeros_like(group), response_lengths=lengths,
        logprobs=first_token, group=group, stopped=stopped,
    )  # fmt: skip
    terms = step.sample_terms(rollouts, rewards)
    prompts_per_sample = step.prompts_per_step / jnp.maximum(terms.trained.sum(), 1)
    denominator = objective.denominator(terms, lengths, max_response, prompts_per_sample)

    def loss(logprobs: Float[Array, "N 1"]) -> Float[Array, ""]:
        old = None if objective.importance_cap is None else first_token
        tokens = Tokens.of_rows(jnp.minimum(lengths, 1), 1)
        return objective.loss_sums(logprobs, first_token, old, None, tokens, terms, lengths).loss

    # Without a trained row the denominator is 0, and the loss too.
    return -jax.grad(loss)(first_token)[:, 0] / jnp.where(denominator > 0, denominator, 1.0)


class FrozenPolicy:
    """The policy of a run at one of its steps: parameters, prompts and graded samples.

    Args:
      run: built.
      checkpoint: folder of a run whose newest parameters are taken; None = those of `model.path`.

    Raises:
      NoCheckpoint: the folder has none.
    """

    def __init__(self, run: Trainer, checkpoint: str | None = None):
        self._run, self.config, self.model, self.mesh = run, run.config, run.sampler.model, run.sampler.mesh
        self.params, self.step = (
            restore_subtree(checkpoint, "params", run.step.abstract_state.params)
            if checkpoint
            else (run.initial_state().params, 0)
        )

    def describe(self) -> list[str]:
        """Model, tokens and data, a line each."""
        return describe_run(self._run)[:3]

    def first_prompts(self, wanted: int) -> Int[np.ndarray, " m"]:
        """Ids of the first distinct prompts that the run takes from this step on; ConfigError where it has fewer."""
        if wanted > (found := len(self._run.prompts)):
            raise ConfigError(f"--prompts={wanted}: data.path = {self.config.data.path!r} has only {found} prompts")
        chosen, step = np.zeros(0, np.int32), self.step
        while len(chosen) < wanted:
            batch = self._run.stream[step]
            chosen, step = np.concatenate([chosen, batch[~np.isin(batch, chosen)]]), step + 1
        return chosen[:wanted]

    @functools.cached_property
    def _policy(self):
        return Policy(self._run.sampler.engine, self.params)

    def sample(self, prompt_ids: Int[np.ndarray, " m"], samples: int) -> tuple[Rollouts, Float[np.ndarray, " N"]]:
        """Rollouts and scores of `samples` samples of each prompt, those first that the run would draw."""
        key, temperature = run_key(self.config.seed, "rollouts", self.step), self.config.rollout.temperature
        counts = np.full(len(prompt_ids), samples)
        graded = self._run.sampler.sample(self._policy, self._run.prompts, prompt_ids, counts, key, temperature)
        return graded.rollouts, graded.scores

    def identity(self) -> dict:
        """All that its samples and gradients depend on: fields that a run keeps on resume, content, and weights."""
        sections = ("seed", "model", "data", "rollout", "gradient_norms")
        kept = {
            name: value
            for name, value in flat(self.config).items()
            if name.partition(".")[0] in sections and on_resume(name) is OnResume.KEPT
        }
        contents = {section: self._run.fingerprints[section] for section in ("data", "model")}
        return kept | contents | {"step": self.step, "weights": checksum(self.params)}
