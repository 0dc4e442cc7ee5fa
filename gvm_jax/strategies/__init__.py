"""Strategies of other papers, one file each; the registry of gvm_jax/allocation imports them by name."""
