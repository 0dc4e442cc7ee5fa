"""Attention kernels for the rollout's paged KV cache; each has its contract in its own module."""
