"""Training of chain-of-thought reasoners with variance-minimising rollout budgets, in JAX."""

__version__ = "0.1.0"
