"""Rewards: what a response says, checked against a reference by the rules of a domain."""

from gvm_jax.rewards.answers import extract_boxed
from gvm_jax.rewards.domains import DOMAINS
from gvm_jax.rewards.grader import Grader, PendingVerdict
from gvm_jax.rewards.verdicts import FAILURES, Status, Verdict, VerifierFailure

__all__ = [
    "DOMAINS",
    "FAILURES",
    "Grader",
    "PendingVerdict",
    "Status",
    "Verdict",
    "VerifierFailure",
    "extract_boxed",
]
