"""What a person hears of a reward function of their own that breaks its contract."""

import numpy as np
import pytest

from gvm_jax.rewards import Status
from gvm_jax.rollout.policy import SampleStats
from gvm_jax.rollout.rollouts import Samples
from gvm_jax.training.sampler import STATUSES, Sampler
from tests.test_train import small_config

SOURCE = """
def none(texts, references):
    return None

def nan_of_twelve(texts, references):
    return [float("nan") if reference == "12" else 1.0 for reference in references]

def two(texts, references):
    return [1.0, 0.0]

def raising(texts, references):
    raise KeyError(references[0])

def own_error(texts, references):
    return [(0.0, "error")]
"""


class Policy:
    """Samples the same response of every prompt."""

    stats = SampleStats()

    def __init__(self, response):
        self.response = np.array(response, np.int32)

    def sample(self, prompts, ids, counts, *_, on_finished, **__):
        samples = Samples(8)
        for row in samples.add(int(counts.sum())):
            samples.append(np.array([row]), self.response[None], np.zeros((1, len(self.response)), np.float32))
            on_finished(row, self.response)
        return samples.rollouts(prompts, np.repeat(np.arange(len(counts)), counts), max(map(len, prompts)))


@pytest.mark.parametrize(
    ("function", "row", "said"),
    [
        ("none", "row 0 (problem '3+1+8', reference '12')", "broken_grades:none returned None, not a sequence"),
        ("nan_of_twelve", "row 0 (problem '3+1+8', reference '12')", "returned the grade nan; a score is a number"),
        ("two", "row 0", "returned 2 grades for 1 text: [1.0, 0.0]"),
        ("raising", "row 0", "raised KeyError: '12' (broken_grades.py, line 12)"),
        ("own_error", None, None),
    ],
)
def test_the_first_broken_grade_of_a_run_is_told_with_its_row_and_the_contract(
    tmp_path, monkeypatch, caplog, function, row, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_grades.py").write_text(SOURCE)
    config = small_config(
        **{"rewards.function": f"broken_grades:{function}", "rewards.workers": 1, "rewards.max_failure_rate": 1.0}
    )
    with Sampler(config) as sampler:
        prompts = sampler.load_prompts("data", config.data.path)
        policy = Policy(sampler.tokenizer("7").input_ids)
        for _ in range(2):  # steps
            graded = sampler.sample(policy, prompts, prompts.ids[:2], np.array([3, 1]), None, 1.0)
    assert graded.statuses[0] == STATUSES.index(Status.ERROR)
    told = [record.getMessage() for record in caplog.records if "rewards.function" in record.getMessage()]
    assert len(told) == (row is not None)
    for message in told:
        assert row in message and said in message and "\n" not in message
        assert f"broken_grades:{function} must return a sequence with a grade of each text" in message
        assert "rewards.max_failure_rate" in message and "gvm_jax/rewards/README.md" in message
