"""Rollouts of the tiny model made by hand, with the log-probabilities that its policy gives them."""

import jax
import numpy as np
import pytest

from gvm_jax.models.logprobs import response_logprobs
from gvm_jax.rollout.rollouts import Samples

MAX_PROMPT, MAX_RESPONSE = 6, 8


@pytest.fixture(scope="session")
def make_rollouts(tiny):
    """A function (counts, noise) -> Rollouts of random tokens; noise moves the behaviour policy off the trainer's."""
    model, params, _ = tiny

    @jax.jit
    def logprobs_of(tokens, prompt_lengths, response_lengths):
        module = model.bind(params)
        return response_logprobs(module, tokens, prompt_lengths, response_lengths, MAX_RESPONSE, 0.8, 8)

    def make(counts, noise=0.0, seed=0):
        rng = np.random.default_rng(seed)
        prompts = [rng.integers(2, 96, rng.integers(2, MAX_PROMPT + 1)).astype(np.int32) for _ in counts]
        samples = Samples(MAX_RESPONSE)
        for row in samples.add(int(np.sum(counts))):
            length = rng.integers(1, MAX_RESPONSE + 1)
            samples.append(np.array([row]), rng.integers(2, 96, (1, length)), np.zeros((1, length), np.float32))
        rollouts = samples.rollouts(prompts, np.repeat(np.arange(len(counts)), counts), MAX_PROMPT)
        logprobs = np.asarray(logprobs_of(rollouts.tokens, rollouts.prompt_lengths, rollouts.response_lengths))
        shift = noise * rng.normal(size=logprobs.shape).astype(np.float32) * (logprobs != 0)
        return rollouts.replace(logprobs=logprobs + shift, stopped=rng.random(len(rollouts.group)) < 0.9)

    return make
