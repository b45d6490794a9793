"""Trains the custom ResNet: ``python scripts/train.py --epochs 24``."""

import sys

from s10_resnet import cli

if __name__ == "__main__":
    sys.exit(cli.train())
