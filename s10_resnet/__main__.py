"""``python -m s10_resnet train ...``: the commands without their scripts."""

import sys

from s10_resnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
