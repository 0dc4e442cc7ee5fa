"""Bad calls of the public API are named before anything is sampled."""

import re

import numpy as np
import pytest

import gvm_jax
from configs import quickstart
from gvm_jax.rollout.rollouts import Rollouts


@pytest.fixture(scope="module")
def reasoner():
    with gvm_jax.Reasoner(quickstart.get_config()) as made:
        yield made


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((["1+2", "3+4"], [1]), "counts (1,): must be a list with one for each"),
        ((["1+2"], 2), "counts (): must be a list"),
        (("1+2", [1, 1, 1]), "of a list of problems"),
        ((["1+2"], [1.5]), "counts = [1.5]: must be integers >= 0"),
        ((["1+2"], [-1]), "counts = [-1]: must be integers >= 0"),
        ((["1+2"], [1], 0, -1.0), "temperature = -1.0: must be >= 0"),
        ((["1+2"], [1], 0, float("nan")), "temperature = nan: must be >= 0"),
        ((["1+2", "+".join("9" * 40)], [1, 1]), "problem 1 has more than data.max_prompt_tokens = 24"),
    ],
)
def test_what_cannot_be_sampled_is_named(reasoner, arguments, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        reasoner.sample(*arguments)


def test_every_problem_needs_a_reference_answer(reasoner):
    rows = np.zeros(2, np.int32)
    rollouts = Rollouts(np.zeros((2, 4), np.int32), rows, rows, np.zeros((2, 2)), np.array([0, 1]), rows > 0)
    for references in (["3"], [3, 7]):
        with pytest.raises(ValueError, match="reference_answers: must be 2 texts"):
            reasoner.grade(rollouts, references)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (([0.5], [1.0, 2.0], 8), "must have one value for each prompt"),
        (([1.5], [1.0], 8), "accept_rates must be in [0, 1]"),
        (([0.5, 0.5], [1.0, 1.0], 1), "budget = 1: must be an integer >= 2 for 2 prompts"),
        (([0.5], [1.0], 8.5), "budget = 8.5: must be an integer"),
        (([0.5], [1.0], 8, "cures"), "strategy = 'cures': must be a strategy such as Gvm()"),
    ],
)
def test_what_cannot_be_allocated_is_named(arguments, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        gvm_jax.allocate(*arguments)
