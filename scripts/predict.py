"""Says what pictures show: ``python scripts/predict.py --checkpoint outputs/<run>/best.pt IMAGE [IMAGE ...]``."""

import sys

from s10_resnet import cli

if __name__ == "__main__":
    sys.exit(cli.predict())
