"""Rewards: the final answer of a response, verified against the reference answer."""

from gvm_jax.rewards.answers import extract_boxed, parse_number
from gvm_jax.rewards.grader import MathGrader, PendingVerdict, Status, Verdict, VerifierFailure

__all__ = [
    "MathGrader",
    "PendingVerdict",
    "Status",
    "Verdict",
    "VerifierFailure",
    "extract_boxed",
    "parse_number",
]
