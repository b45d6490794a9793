"""More than one training run: sweeps, statistics, comparisons."""
