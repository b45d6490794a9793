import errno
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.utils.data import DataLoader

from s10_resnet import errors
from s10_resnet.data import loader as batches
from s10_resnet.errors import EnvironmentFailure, InputError, TrainingError, explain_system_error

REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EROFS: "name a folder that can be written to",
    errno.ENOENT: "put it back",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: "raise the limit of processes",
    errno.ECONNRESET: "a worker was killed",
    errno.EIO: "look at the disk",
    errno.EPIPE: "send the output somewhere that reads all of it",
}
ACCELERATOR = "the accelerator's memory is full; lower --batch-size"
WORKER_KILLED, SHARED_MEMORY = "a worker was killed", "/dev/shm is too small"
MEMORY, PROCESS_GONE = "the memory is full; lower --batch-size", "another process of this run is gone"

# As torch and its libraries word them, the line breaks included.
TEXTS = [
    ("can't start new thread", "no thread can be started; raise the limit of processes"),
    ("DataLoader worker (pid 71) is killed by signal: Killed. ", WORKER_KILLED),
    ("DataLoader worker (pid(s) 71, 72) exited unexpectedly", WORKER_KILLED),
    ("DataLoader worker (pid 71) is killed by signal: Segmentation fault. ", WORKER_KILLED),
    (
        "DataLoader worker (pid 71) is killed by signal: Bus error. It is possible that dataloader's workers are out "
        "of shared memory. Please try to raise your shared memory limit.",
        SHARED_MEMORY,
    ),
    (
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)\n",
        SHARED_MEMORY,
    ),
    (
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        "RuntimeError: unable to open shared memory object </torch_1_2_3> in read-write mode: Too many open files (24)",
        "ulimit -n",
    ),
    (
        "Too many open files. Communication with the workers is no longer possible. Please increase the limit using "
        "`ulimit -n` in the shell or change the sharing strategy by calling "
        "`torch.multiprocessing.set_sharing_strategy('file_system')` at the beginning of your code",
        "ulimit -n",
    ),
    ("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:31415", PROCESS_GONE),
    ("[pair.cc:545] Read error [127.0.0.1]:26019: Connection reset by peer. Check the logs.", PROCESS_GONE),
    ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", ACCELERATOR),
    ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported ...", ACCELERATOR),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", ACCELERATOR),
    ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", ACCELERATOR),
    ("Pin memory thread exited unexpectedly", "the thread that pins memory ended"),
    ("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors ...", "not built for"),
    ("[1]: Rank 0 successfully reached monitoredBarrier, but [2] NCCL watchdog timed out", PROCESS_GONE),
]


class Item(torch.utils.data.Dataset):
    """One item, which is what a function returns."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.make()


def explained(error):
    cause = explain_system_error(error)
    assert cause is None or (cause.isprintable() and cause)  # one line
    return cause


def raised_by(make):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever torch makes of it
        make()
    return caught.value


def raised_in_a_worker(make):
    with batches.iterate_batches(DataLoader(Item(make), batch_size=None, num_workers=1)) as stream:
        return raised_by(lambda: next(stream))


def test_there_is_no_remedy_that_is_not_tested():
    assert REMEDIES.keys() == errors.REMEDIES.keys()


@pytest.mark.parametrize("number", REMEDIES)
def test_an_error_of_the_system_comes_with_its_name_and_a_remedy(number):
    text = os.strerror(number)
    assert explained(OSError(number, text, "last.pt")).startswith(f"last.pt: {text}; {REMEDIES[number]}")
    assert explained(OSError(number, text)).startswith(f"{text}; {REMEDIES[number]}")


def test_what_the_system_really_raises(tmp_path):
    missing = tmp_path / "missing" / "file"
    assert explained(raised_by(missing.touch)) == (
        f"{missing}: No such file or directory; put it back: something removed it during the run"
    )
    (tmp_path / "history.csv").mkdir()
    (tmp_path / ".tmp").touch()
    told = explained(raised_by(lambda: (tmp_path / ".tmp").replace(tmp_path / "history.csv")))
    assert told == f"{tmp_path / 'history.csv'}: Is a directory"  # not the temporary file
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        assert explained(raised_by(lambda: os.write(descriptor, b"x"))) == "No space left on device; free some space"
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("text", "remedy"), TEXTS)
def test_what_torch_says_is_understood(text, remedy):
    assert remedy in explained(RuntimeError(text))


def test_a_full_accelerator():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of ...")
    assert explained(error).startswith("the accelerator's memory is full; lower --batch-size")


def test_an_accelerator_that_fails():
    def failure(text):
        return explained(torch.AcceleratorError(f"{text}\nCUDA kernel errors might be reported asynchronously ..."))

    assert failure("CUDA error: unspecified launch failure").startswith(
        "the accelerator failed (CUDA error: unspecified launch failure); "
    )
    assert failure("CUDA error: out of memory").startswith(ACCELERATOR)  # in creating the context on a full card
    assert failure("CUDA error: CUDA-capable device(s) is/are busy or unavailable").startswith(
        "the accelerator is in use by another process, "
    )
    assert "not built for" in failure("CUDA error: no kernel image is available for execution on the device")


@pytest.mark.parametrize("number", [errno.EFBIG, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST])
def test_any_other_error_of_the_system_comes_with_its_name(number):
    text = os.strerror(number)
    assert explained(OSError(number, text)) == text
    assert explained(OSError(number, text, "last.pt")) == f"last.pt: {text}"


def test_a_full_memory():
    assert explained(MemoryError()).startswith(MEMORY)
    assert explained(raised_by(lambda: torch.empty(2**60, dtype=torch.uint8))).startswith(MEMORY)
    assert explained(raised_in_a_worker(lambda: torch.empty(2**60, dtype=torch.uint8))).startswith(MEMORY)


def test_a_full_shared_memory():
    def share():
        return torch.UntypedStorage._new_shared(2**50)

    shared = Path("/dev/shm")
    before = set(shared.glob("torch_*"))
    assert explained(raised_by(share)).startswith(SHARED_MEMORY)
    assert explained(raised_in_a_worker(share)).startswith(SHARED_MEMORY)
    for left in set(shared.glob("torch_*")) - before:  # torch forgets the file that it could not fill
        left.unlink()


def test_a_worker_that_is_gone():
    for end in (lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(1)):
        assert explained(raised_in_a_worker(end)).startswith(WORKER_KILLED)


def test_a_process_of_the_run_that_is_gone(tmp_path):
    def take_part(rank, told):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=rank, world_size=2)
        distributed.all_reduce(torch.ones(1))
        if rank == 1:
            os._exit(1)
        told.send(explain_system_error(raised_by(lambda: distributed.all_reduce(torch.ones(1)))))
        os._exit(0)

    context = multiprocessing.get_context("fork")
    hear, tell = context.Pipe(duplex=False)
    processes = [context.Process(target=take_part, args=(rank, tell)) for rank in (0, 1)]
    for process in processes:
        process.start()
    tell.close()
    try:
        assert hear.poll(60)
        assert hear.recv() == f"{PROCESS_GONE}; its own message says why"
    finally:
        for process in processes:
            process.kill()
            process.join()
        hear.close()


def test_errors_of_torch_about_other_processes():
    for kind in (distributed.DistBackendError, distributed.DistNetworkError, distributed.DistStoreError):
        assert explained(kind("timed out")).startswith(PROCESS_GONE)


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("a bug"),
        KeyError("weights"),
        AssertionError(),
        RuntimeError("Error(s) in loading state_dict for ResNet9: size mismatch for linear.weight"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (512x512 and 128x10)"),
        ValueError("the connection closed, gloo, NCCL, shared memory: No space left on device"),
        OSError("without a number"),
        torch.AcceleratorError("CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert' in ..."),
        InputError("--name gloo: must be a new name"),
        TrainingError("the loss is no longer a finite number; /home/nccl/NCCL-gloo holds the epochs before"),
        EnvironmentFailure("another process; python scripts/train.py --resume /home/gloo/run goes on"),
    ],
)
def test_a_bug_is_nothing_the_machine_did(bug):
    assert explained(bug) is None


def test_a_bug_in_a_worker_is_nothing_the_machine_did():
    def mismatch():
        return torch.ones(2, 3) @ torch.ones(2, 3)

    error = raised_in_a_worker(mismatch)
    assert "DataLoader worker process 0" in str(error)
    assert explained(error) is None
