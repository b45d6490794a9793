"""Trains the custom ResNet: ``python scripts/train.py --epochs 24``."""

import sys

from s10_resnet import cli

if __name__ == "__main__":
    sys.exit(cli.run("train", prog="train.py", description="Trains the custom ResNet on CIFAR-10."))
