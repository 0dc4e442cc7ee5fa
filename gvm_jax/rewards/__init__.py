"""Rewards: extract the answer of a response and check it against a reference answer."""

from gvm_jax.rewards.answers import extract_boxed
from gvm_jax.rewards.grader import Grader, PendingVerdict, grade
from gvm_jax.rewards.verdicts import FAILURES, Status, Verdict, VerifierFailure
from gvm_jax.rewards.verifiers import VERIFIERS

__all__ = [
    "FAILURES",
    "VERIFIERS",
    "Grader",
    "PendingVerdict",
    "Status",
    "Verdict",
    "VerifierFailure",
    "extract_boxed",
    "grade",
]
