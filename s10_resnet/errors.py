"""The ways a command can fail that are not bugs."""


class InputError(ValueError):
    """Something the user gave cannot be used: one line naming it, its value and what is allowed; exit code 2."""


class DownloadError(InputError):
    """CIFAR-10 is not there and could not be fetched."""


class TrainingError(RuntimeError):
    """A run that began well cannot go on, say because its loss is no longer a number; exit code 1."""


class MachineError(RuntimeError):
    """The machine let a run down, say with a full disk: one line with cause and remedy; exit code 1."""
