"""Finds the peak learning rate by a range test: ``python scripts/find_lr.py``."""

import sys

from s10_resnet import cli

if __name__ == "__main__":
    sys.exit(cli.run("search_lr", prog="find_lr.py", description="Runs the learning-rate range test and reads it."))
