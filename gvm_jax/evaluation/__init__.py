"""Scores of a policy on benchmarks."""
