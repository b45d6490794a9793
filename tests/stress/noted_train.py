"""``scripts/train.py``, noting in the file named by S10_NOTE how many steps have been taken: a kill cannot be asked."""

import os
import runpy
import sys
from pathlib import Path

from s10_resnet.training import loop as engine

train_steps = engine.train_steps
note = os.open(os.environ["S10_NOTE"], os.O_WRONLY | os.O_CREAT)


def noted(state, *arguments):
    for totals in train_steps(state, *arguments):
        os.pwrite(note, b"%8d" % state.step, 0)
        yield totals


engine.train_steps = noted
script = Path(__file__).resolve().parents[2] / "scripts" / "train.py"
sys.argv[0] = str(script)
runpy.run_path(str(script), run_name="__main__")
