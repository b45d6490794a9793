"""What the scripts share: flags in, exit code out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from s10_resnet import flags
from s10_resnet.config import Config
from s10_resnet.errors import InputError, TrainingError


def run(command: str, argv: Sequence[str] | None = None, *, prog: str, description: str) -> int:
    """Runs a function of `s10_resnet.recipe` with the settings of a command line.

    Returns:
        0; 1 if the training failed; 2 if the input was bad; 130 after Ctrl-C. The last three say why in one line.
    """
    try:
        config = Config(**flags.read(argv, prog=prog, description=description))
        from s10_resnet import recipe  # torch takes seconds to import: --help and a bad flag need not wait for it

        getattr(recipe, command)(config)
    except InputError as error:
        return _fail(f"{prog}: error: {error}", 2)
    except TrainingError as error:
        return _fail(f"{prog}: failed: {error}", 1)
    except KeyboardInterrupt:
        return _fail(f"{prog}: interrupted", 130)
    return 0


def _fail(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code
