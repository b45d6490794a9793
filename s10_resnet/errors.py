"""Exceptions that are not bugs, and explanations of failures of the system."""

from __future__ import annotations

import errno
import re

REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EROFS: "name a folder that can be written to",
    errno.ENOENT: "put it back: something removed it during the run",
    errno.EMFILE: "raise the limit of open files (ulimit -n) or lower --workers",
    errno.EAGAIN: "raise the limit of processes (ulimit -u) or lower --workers",
    errno.ENOMEM: "free some memory or lower --batch-size",
    errno.ECONNRESET: "a worker was killed, most often for want of memory: lower --workers or free some memory",
    errno.EIO: "look at the disk, which failed",
    errno.EPIPE: "send the output somewhere that reads all of it, such as a file",
}


class InputError(ValueError):
    """Invalid user input: one line with its name, its value and what is allowed; exit code 2."""


class DownloadError(InputError):
    """CIFAR-10 is missing and could not be downloaded."""


class TrainingError(RuntimeError):
    """A run cannot continue, for example because its loss is not finite; exit code 1."""


class EnvironmentFailure(RuntimeError):  # noqa: N818 - not an error of the package
    """The system failed, for example with a full disk: one line with cause and remedy; exit code 1."""


def explain_system_error(error: BaseException) -> str | None:
    """Explains a failure of the system, such as a full disk or a killed worker.

    Returns:
        The cause in one line, with a remedy if one is known; None for any other error, such as a bug.
    """
    if isinstance(error, OSError) and error.errno:
        name = error.filename2 or error.filename  # of a rename, the target: the other one is a temporary file
        cause = f"{name}: {error.strerror}" if name else f"{error.strerror}"
        return f"{cause}; {REMEDIES[error.errno]}" if error.errno in REMEDIES else cause
    if isinstance(error, TrainingError | EnvironmentFailure) or not isinstance(error, RuntimeError | MemoryError):
        return None

    import torch  # takes seconds, and the command line imports this module before it reads any flags

    text = str(error)
    # cuBLAS says that it is not initialized when there is no memory for its handle.
    full = re.search(r"CU(BLAS|DNN)_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)|CUDA error: out of memory", text)
    if full or isinstance(error, torch.OutOfMemoryError):
        return "the accelerator's memory is full; lower --batch-size, or end what else uses it"
    if isinstance(error, MemoryError) or re.search(r"can't allocate memory|Cannot allocate memory", text):
        return "the memory is full; lower --batch-size or --workers, or end what else uses it"
    if "no kernel image is available" in text:
        return "this torch was not built for the accelerator; install one that was (pytorch.org), or --device cpu"
    if "busy or unavailable" in text:
        return (
            "the accelerator is in use by another process, which does not share it; end that, or use another --device"
        )
    if "can't start new thread" in text:
        return f"no thread can be started; {REMEDIES[errno.EAGAIN]}"
    if "Too many open files" in text:
        return f"too many open files; {REMEDIES[errno.EMFILE]}"
    if re.search(
        r"shared memory ?\(shm\)|shared memory object|out of shared memory\. |Bus error|No space left on device", text
    ):
        return "/dev/shm is too small for the batches of the workers; enlarge it (docker run --shm-size) or --workers 0"
    if re.search(r"DataLoader worker .*(killed|exited)", text):
        return "a worker was killed, most often by the system for want of memory; lower --workers or free some memory"
    if "Pin memory thread exited" in text:
        return "the thread that pins memory ended, most often for want of memory; lower --batch-size or free memory"
    if isinstance(error, torch.distributed.DistError) or re.search(r"[Cc]onnection (closed|reset)|gloo|NCCL", text):
        return "another process of this run is gone; its own message says why"
    # A device-side assert is an index out of range: a bug, whose traceback is wanted.
    if isinstance(error, torch.AcceleratorError) and "device-side assert" not in text:
        return f"the accelerator failed ({text.splitlines()[0]}); a restart of the process or the machine may help"
    return None
