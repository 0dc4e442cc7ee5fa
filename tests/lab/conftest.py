"""Populations made by hand and steps without a model, for the variance study."""

import numpy as np
import pytest

from gvm_jax.config import get_config
from gvm_jax.lab import frozen_step, variants
from gvm_jax.lab.pool import Pool


@pytest.fixture(scope="session")
def lab_config():
    """A function (prompts, rollouts, **fields) -> config; fields by dotted name with __ for the dot."""

    def make(prompts, rollouts, **fields):
        config = get_config()
        config.prompts_per_step, config.rollouts_per_step = prompts, rollouts
        config.model.path = config.data.path = "unused"
        config.optimizer.updates_per_step = config.optimizer.micro_batch = 1
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
        return config

    return make


@pytest.fixture(scope="session")
def make_step():
    """A function (config, entry) -> the step of that entry."""

    def make(config, entry="uniform"):
        own = variants.parse(config, entry).config(config, seed=0)
        return frozen_step.make_step(own, config.prompts_per_step)

    return make


@pytest.fixture(scope="session")
def make_pool():
    """A function (accept_rates, spread, seed) -> pool whose frequencies are the accept rates, to within a sample."""

    def make(accept_rates, spread=1.0, samples=40, dimensions=6, max_response=8, seed=0):
        random = np.random.default_rng(seed)
        m = len(accept_rates)
        accepted = np.arange(samples) < np.rint(samples * np.asarray(accept_rates))[:, None]
        centre = random.normal(size=(m, 1, dimensions)) + 2.0 * accepted[..., None]
        noise = np.broadcast_to(spread, m)[:, None, None] * random.normal(size=(m, samples, dimensions))
        gradients = (centre + noise).astype(np.float32)
        squared = np.square(gradients).sum(2)
        return Pool(
            rewards=accepted.astype(np.float32),
            stopped=np.ones((m, samples), bool),
            response_lengths=random.integers(1, max_response + 1, (m, samples)).astype(np.int32),
            norms=np.sqrt(squared),
            squared_norms=squared,
            sketches=gradients,
            max_response=max_response,
        )

    return make
