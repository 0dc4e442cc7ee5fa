"""Programs that nobody has read, run against tests that they do not see. Linux only; the child processes use the
standard library alone."""
