"""``scripts/train.py`` that writes the number of steps taken to the file S10_STEPS_FILE, which survives a kill."""

import os
import runpy
import sys
from pathlib import Path

from s10_resnet.training.run_logger import RunLogger

on_step = RunLogger.on_step
steps_file = os.open(os.environ["S10_STEPS_FILE"], os.O_WRONLY | os.O_CREAT)


def counted(self, state):
    os.pwrite(steps_file, b"%8d" % state.step, 0)
    on_step(self, state)


RunLogger.on_step = counted
script = Path(__file__).resolve().parents[2] / "scripts" / "train.py"
sys.argv[0] = str(script)
runpy.run_path(str(script), run_name="__main__")
