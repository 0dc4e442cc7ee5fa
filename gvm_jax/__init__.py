"""Training of chain-of-thought reasoners with variance-minimising rollout budgets, in JAX."""
