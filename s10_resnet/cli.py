"""What the scripts share: flags in, exit code out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence

from s10_resnet import flags, signals
from s10_resnet.config import Config
from s10_resnet.errors import InputError, MachineError, TrainingError


def run(command: str, argv: Sequence[str] | None = None, *, prog: str, description: str) -> int:
    """Runs a function of `s10_resnet.recipe` with the settings of a command line.

    Returns:
        0; 1 if the training or the machine failed; 2 if the input was bad; 130 after Ctrl-C, 143 after SIGTERM. The
        last four say why in one line.
    """
    rank = os.environ.get("RANK") or "0"
    say = rank == "0"  # of bad flags, which all ranks have been given
    with signals.heeded():
        try:
            given = flags.read(argv, resumable=command == "train", prog=prog, description=description)
            path = given.pop("resume", None)
            config = None if path else Config(**given)
            from s10_resnet import recipe  # torch takes seconds to import: --help and a bad flag need not wait for it

            prog, say = prog if say else f"{prog}: rank {rank}", True
            recipe.resume(path, given) if path else getattr(recipe, command)(config)
        except InputError as error:
            return _fail(f"{prog}: error: {error}", 2, say)
        except (TrainingError, MachineError) as error:
            return _fail(f"{prog}: failed: {error}", 1)
        except signals.Stopped as stop:
            signals.ignore()  # one more would only change the exit code
            how = "interrupted" if stop.signum == signal.SIGINT else "terminated"
            return _fail(f"{prog}: {how}", 128 + stop.signum, say=rank == "0")
        except Exception as error:
            from s10_resnet import faults

            cause = faults.explain(error)
            if cause is None:
                raise
            return _fail(f"{prog}: failed: {cause}", 1)
        finally:
            for child in multiprocessing.active_children():  # after a second Ctrl-C there may be some
                child.kill()
    return 0


def _fail(line: str, code: int, say: bool = True) -> int:
    if say:
        print(" ".join(line.splitlines()), file=sys.stderr)
    return code
