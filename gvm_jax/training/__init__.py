"""Training: objectives and advantages, per-sample gradient norms, the state, and the one jitted step."""
