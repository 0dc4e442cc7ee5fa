"""Rollouts of this engine side by side with its peers': same weights, same prompts, alternating on one machine."""
