"""Times the stages of a training beside a baseline script: ``python scripts/benchmark.py --quick``."""

import sys

from s10_resnet import cli

if __name__ == "__main__":
    sys.exit(cli.benchmark())
