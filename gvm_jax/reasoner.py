"""A Qwen2.5 policy in a notebook: sample n_i answers of each problem, log-probabilities, gradient norms, grades."""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from gvm_jax.config import validate
from gvm_jax.data import Row, build_prompts
from gvm_jax.models.logprobs import response_logprobs
from gvm_jax.models.qwen2 import Params
from gvm_jax.rewards import Verdict
from gvm_jax.rollout.policy import Policy
from gvm_jax.rollout.rollouts import Rollouts
from gvm_jax.runtime.keys import run_key
from gvm_jax.training.gradient_norms import GradientNormSettings, measured_parts, per_sample_gradient_norms
from gvm_jax.training.sampler import Sampler


class Reasoner(contextlib.AbstractContextManager):
    """A policy with its tokenizer and grader. A context manager: it owns the grader's processes.

    Args:
      config: of a run. `model.path` is the folder; the sections `data` (prompt texts), `rollout`, `rewards`,
        `gradient_norms` and `mesh` count, those of training do not.
      params: float32 parameters, as a `TrainState` holds them; None = the weights of `model.path`.

    Raises:
      ConfigError, ModelError: bad input, before any device work.
    """

    def __init__(self, config: ConfigDict, params: Params | None = None):
        config = ConfigDict(config.to_dict())
        config.data.path = config.data.path or "builtin:arithmetic"  # a policy alone needs no data
        validate(config)
        self.config, self.sampler = config, Sampler(config)
        try:
            self.sampler.build()
            norms = GradientNormSettings.from_config(config.gradient_norms)
            self._norms = dataclasses.replace(norms, max_samples=0)  # every answer is measured
            measured_parts(self.sampler.model.abstract_params, self._norms)  # the names must match
            self.params = self.sampler.load_params() if params is None else params
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the grader's processes."""
        self.sampler.grader.close()

    def sample(
        self, problems: Sequence[str], counts: Sequence[int], seed: int = 0, temperature: float | None = None
    ) -> Rollouts:
        """`counts[i]` answers of problem i, as numpy arrays; rows are ordered by problem, `group` is its number.

        Args:
          problems: texts; `data.system_prompt`, `data.user_template` and the chat template make them prompts.
          counts: answers of each, 0 allowed.
          seed: equal seeds give equal answers.
          temperature: 0 = greedy; None = `rollout.temperature`.

        Raises:
          DataError: a problem that cannot be a prompt, or one longer than `data.max_prompt_tokens`.
          ValueError: counts or a temperature that cannot be.
        """
        number = np.asarray(counts)
        if isinstance(problems, str) or number.shape != (len(problems),):
            raise ValueError(f"counts {number.shape}: must be a list with one for each of a list of problems")
        if not np.issubdtype(number.dtype, np.integer) or (number < 0).any():
            raise ValueError(f"counts = {list(counts)}: must be integers >= 0")
        if temperature is not None and not 0 <= temperature < np.inf:
            raise ValueError(f"temperature = {temperature}: must be >= 0, 0 for greedy")
        data = self.config.data
        rows = [Row(problem, "") for problem in problems]
        prompts = build_prompts(
            rows, self.sampler.tokenizer, data.system_prompt, data.user_template, data.max_prompt_tokens
        )
        if dropped := sorted(set(range(len(problems))) - set(prompts.ids.tolist())):
            raise ValueError(f"problem {dropped[0]} has more than data.max_prompt_tokens = {data.max_prompt_tokens}")
        temperature = self.config.rollout.temperature if temperature is None else temperature
        policy = Policy(self.sampler.engine, self.params)
        key = run_key(seed, "rollouts", 0)
        return policy.sample(prompts.tokens, prompts.ids, np.asarray(counts, np.int32), key, temperature)

    def texts(self, rollouts: Rollouts) -> list[str]:
        """The answers, without what ends a turn."""
        return [self.sampler.endings.text(rollouts.response(row)) for row in range(len(rollouts.group))]

    def grade(self, rollouts: Rollouts, reference_answers: Sequence[str]) -> list[Verdict]:
        """`rewards.function`'s verdict on each answer; `reference_answers[i]` is problem i's."""
        problems = int(rollouts.group.max(initial=-1)) + 1
        if len(reference_answers) < problems or not all(isinstance(text, str) for text in reference_answers):
            raise ValueError(f"reference_answers: must be {problems} texts, one for each problem")
        references = [reference_answers[group] for group in rollouts.group]
        return self.sampler.grader.grade(self.texts(rollouts), references)

    def logprobs(self, rollouts: Rollouts) -> Float[np.ndarray, "N T"]:
        """log π_T of each response token at `rollout.temperature`; 0 beyond a response.

        `optimizer.micro_batch` answers a pass, so that memory does not grow with their number.
        """
        samples = len(rollouts.group)
        size = min(self.config.optimizer.micro_batch, samples)
        passes = []
        for begin in range(0, samples, size):
            rows = np.minimum(np.arange(begin, begin + size), samples - 1)  # of equal shapes: the last one is filled up
            passes.append(np.asarray(self._logprobs(self.params, rollouts.take(rows))))
        return np.concatenate(passes)[:samples]

    def gradient_norms(self, rollouts: Rollouts) -> Float[Array, " N"]:
        """G of each answer: ‖∇ Σ_t log π_T(y_t)‖₂ of `gradient_norms.parameters` (arXiv 2505.02391, Algorithm 2)."""
        return self._gradient_norms(self.params, rollouts)

    @functools.cached_property
    def _logprobs(self):
        model, config = self.sampler.model, self.config

        def logprobs(params: Params, rollouts: Rollouts) -> Float[Array, "N T"]:
            return response_logprobs(
                model.bind(params), rollouts.tokens, rollouts.prompt_lengths, rollouts.response_lengths,
                rollouts.max_response, config.rollout.temperature, config.optimizer.logprob_chunk,
            )  # fmt: skip

        return jax.jit(logprobs)

    @functools.cached_property
    def _gradient_norms(self):
        model, config = self.sampler.model, self.config

        def norms(params: Params, rollouts: Rollouts) -> Float[Array, " N"]:
            every = jnp.ones(rollouts.group.shape, bool)
            return per_sample_gradient_norms(
                model, params, rollouts, every, self._norms, config.rollout.temperature,
                config.optimizer.logprob_chunk,
            )  # fmt: skip

        return jax.jit(norms)
