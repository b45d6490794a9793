"""What the machine's failures mean and what to do about them: exceptions in, one sentence out."""

from __future__ import annotations

import errno
import re

import torch

from s10_resnet.errors import MachineError, TrainingError

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
    errno.EIO: "look at the disk, which failed",
    errno.EPIPE: "send the output somewhere that reads all of it, such as a file",
}


def explain(error: BaseException) -> str | None:
    """Cause and remedy in one line; None for an error that is not the machine's, such as a bug."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in REMEDIES:
        named = f"{error.filename}: " if error.filename else ""
        return f"{named}{error.strerror}; {REMEDIES[error.errno]}"
    if isinstance(error, TrainingError | MachineError):
        return None
    if isinstance(error, torch.OutOfMemoryError):
        return "the accelerator's memory is full; lower --batch-size, or end what else uses it"
    if isinstance(error, MemoryError) or re.search(
        r"can't allocate memory|Cannot allocate memory|CUBLAS_STATUS_ALLOC_FAILED", text
    ):
        return "the memory is full; lower --batch-size or --workers, or end what else uses it"
    if not isinstance(error, RuntimeError):
        return None
    if "Too many open files" in text:
        return f"too many open files; {REMEDIES[errno.EMFILE]}"
    if re.search(
        r"shared memory ?\(shm\)|shared memory object|out of shared memory\. |Bus error|No space left on device", text
    ):
        return "/dev/shm is too small for the batches of the workers; enlarge it (docker run --shm-size) or --workers 0"
    if re.search(r"DataLoader worker .*(killed|exited)", text):
        return "a worker was killed, most often by the system for want of memory; lower --workers or free some memory"
    if isinstance(error, torch.distributed.DistError) or re.search(r"[Cc]onnection (closed|reset)|gloo|NCCL", text):
        return "another process of this training is gone; its own message says why"
    return None
