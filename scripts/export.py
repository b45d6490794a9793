"""Exports trained weights: ``python scripts/export.py --checkpoint outputs/<run>/best.pt --format onnx``."""

import sys

from s10_resnet import cli

if __name__ == "__main__":
    sys.exit(cli.export())
