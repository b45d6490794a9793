"""Trains variants of the recipe and compares them: ``python scripts/sweep.py max-lr=2e-3,5e-3,1e-2 --runs 5``."""

import sys

from s10_resnet import cli

if __name__ == "__main__":
    sys.exit(cli.sweep())
