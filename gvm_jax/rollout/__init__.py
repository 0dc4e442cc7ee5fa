"""Sampling from a paged KV cache: pages, scheduling, jitted prefill and decode."""
