"""More than one training: repetitions, sweeps, comparisons."""
