"""Training: optimizer, loop, range test, checkpoints and logging."""
