"""The authors' protocol: what math-verify itself makes of whole responses, mistakes included."""

import pytest
from math_verify import ExprExtractionConfig, LatexExtractionConfig
from math_verify.metric import math_metric

from gvm_jax.rewards import Grader

CASES = [
    (r"so \boxed{\frac{1}{2}}", "0.5"),
    (r"so \boxed{3}", "4"),
    ("The final answer is $7$. I hope it is correct.", "7"),
    ("The answer is 42.", "42"),
    (r"\boxed{3} and \boxed{7}", "3,7"),
    (r"\boxed{8e3}", "3e8"),
    (r"\boxed{7.}", "7"),
    (r"First \boxed{7}. So \boxed{7", "7"),
    ("no idea", "7"),
]


def test_scores_are_those_of_the_libraries_own_metric():
    metric = math_metric((LatexExtractionConfig(),), (ExprExtractionConfig(), LatexExtractionConfig()))
    expected = [metric([rf"\boxed{{{reference}}}"], [text])[0] for text, reference in CASES]
    with Grader("math_verify", workers=1, deadline_seconds=5.0, memory_mib=1024, max_failure_rate=0.0) as grader:
        verdicts = grader.grade(*map(list, zip(*CASES, strict=True)))
        assert [verdict.score for verdict in verdicts] == expected
        assert grader.parses(["7", r"\frac{1}{2}", ""]).tolist() == [True, True, False]
        assert grader.equivalent([(r"\boxed{0.5}", r"so \boxed{\frac12}"), (r"\boxed{1}", r"\boxed{2}")]) == [
            True,
            False,
        ]
    assert {0.0, 1.0} == set(expected)
    with pytest.raises(ValueError, match="math_verify"):
        Grader("math_verfy", 1, 5.0, 1024, 0.0)
