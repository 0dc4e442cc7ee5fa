"""One script an engine, each run in the engine's own interpreter; none but gvm_jax's imports this package."""
