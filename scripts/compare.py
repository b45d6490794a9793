"""Compares runs: ``python scripts/compare.py outputs/a outputs/b``."""

import sys

from s10_resnet import cli

if __name__ == "__main__":
    sys.exit(cli.compare())
