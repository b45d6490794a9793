"""Finds the maximum learning rate: ``python scripts/find_lr.py``."""

import sys

from s10_resnet import cli

if __name__ == "__main__":
    sys.exit(cli.find_lr())
