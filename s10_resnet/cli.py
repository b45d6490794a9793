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
    with signals.heeded():
        try:
            given = flags.read(argv, resumable=command == "train", prog=prog, description=description)
            path = given.pop("resume", None)
            config = None if path else Config(**given)
            from s10_resnet import recipe  # torch takes seconds to import: --help and a bad flag need not wait for it

            recipe.resume(path, given) if path else getattr(recipe, command)(config)
        except InputError as error:
            return _fail(f"{prog}: error: {error}", 2, everywhere=True)
        except (TrainingError, MachineError) as error:
            return _fail(f"{prog}: failed: {error}", 1)
        except signals.Stopped as stop:
            how = "interrupted" if stop.signum == signal.SIGINT else "terminated"
            return _fail(f"{prog}: {how}", 128 + stop.signum, everywhere=True)
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


def _fail(line: str, code: int, everywhere: bool = False) -> int:
    if not everywhere or int(os.environ.get("RANK", 0)) == 0:  # what all ranks have to say, rank 0 says
        print(line, file=sys.stderr)
    return code
