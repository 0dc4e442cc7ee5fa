"""Which prompt gets how many samples: statistics, strategies and the variance program."""

from gvm_jax.allocation.allocator import AllocationInfo, Allocator
from gvm_jax.allocation.program import allocate, check_bounds, ideal_variance_ratio, variance_ratio
from gvm_jax.allocation.statistics import PromptStatistics, accept_rate, gradient_norm, init, response_length, update
from gvm_jax.allocation.strategies import STRATEGIES, Gvm, Strategy, Uniform, make_strategy

__all__ = [
    "STRATEGIES",
    "AllocationInfo",
    "Allocator",
    "Gvm",
    "PromptStatistics",
    "Strategy",
    "Uniform",
    "accept_rate",
    "allocate",
    "check_bounds",
    "gradient_norm",
    "ideal_variance_ratio",
    "init",
    "make_strategy",
    "response_length",
    "update",
    "variance_ratio",
]
