"""Rollouts and gradient norms side by side with the peers': same weights, same tokens, alternating on one machine."""
