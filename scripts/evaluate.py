"""Evaluates trained weights: ``python scripts/evaluate.py --checkpoint outputs/<run>/best.pt``."""

import sys

from s10_resnet import cli

if __name__ == "__main__":
    sys.exit(cli.evaluate())
