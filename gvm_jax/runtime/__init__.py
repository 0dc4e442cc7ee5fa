"""Where a run lives: devices and mesh, checkpoints, metrics, stop signals, progress and timing.

Import the modules themselves; those that need no device (metrics, progress, timing) do not import JAX.
"""
