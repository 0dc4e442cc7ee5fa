"""Allocation: how many samples each prompt gets, from statistics of earlier ones."""

from gvm_jax.allocation import solver, statistics
from gvm_jax.allocation.allocator import AllocationInfo, Allocator, allocate
from gvm_jax.allocation.gvm import Gvm, GvmRates
from gvm_jax.allocation.options import option
from gvm_jax.allocation.registry import STRATEGIES, load_strategy, make_strategy
from gvm_jax.allocation.statistics import PromptEstimates, PromptStatistics, Sums
from gvm_jax.allocation.strategy import Constraints, Progress, Strategy
from gvm_jax.allocation.uniform import Uniform

__all__ = [
    "STRATEGIES",
    "AllocationInfo",
    "Allocator",
    "Constraints",
    "Gvm",
    "GvmRates",
    "Progress",
    "PromptEstimates",
    "PromptStatistics",
    "Strategy",
    "Sums",
    "Uniform",
    "allocate",
    "load_strategy",
    "make_strategy",
    "option",
    "solver",
    "statistics",
]
