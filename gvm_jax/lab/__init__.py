"""Experiments on top of training: comparisons of strategies, and variances that are measured instead of bounded."""
