"""Runs untrusted programs against tests that they cannot see. Linux only; the child processes import no third party."""
