"""Rollouts, gradient norms and updates beside the peers': same weights and tokens, in turns on one machine."""
