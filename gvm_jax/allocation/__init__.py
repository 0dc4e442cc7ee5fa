"""Which prompt gets how many samples: statistics, strategies and the variance program."""

from gvm_jax.allocation import solver, statistics
from gvm_jax.allocation.allocator import AllocationInfo, Allocator
from gvm_jax.allocation.statistics import PromptEstimates, PromptStatistics, Sums
from gvm_jax.allocation.strategies import STRATEGIES, Constraints, ProgramStrategy, Progress, Strategy, make_strategy

__all__ = [
    "STRATEGIES",
    "AllocationInfo",
    "Allocator",
    "Constraints",
    "ProgramStrategy",
    "Progress",
    "PromptEstimates",
    "PromptStatistics",
    "Strategy",
    "Sums",
    "make_strategy",
    "solver",
    "statistics",
]
