"""Tasks of each engine, run by server.py in the engine's own interpreter; only gvm_jax's import this package."""
