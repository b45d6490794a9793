"""The device, the precision, and the processes of distributed training."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import platform
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from s10_resnet.errors import InputError
from s10_resnet.utils.console import logger
from s10_resnet.utils.launch import LaunchEnv, launch_env

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The device, the precision, and the rank of this process.

    With fp32, autocast and the scaler do nothing; in a single process, neither do the collective methods.
    """

    device: torch.device  # of models and batches
    precision: str  # fp32, bf16 or fp16
    rank: int = 0  # index of this process among all
    world_size: int = 1  # number of processes

    @property
    def autocast_options(self) -> dict:
        """Keyword arguments of `torch.autocast`."""
        enabled = self.precision != "fp32"
        return {
            "device_type": self.device.type,
            "dtype": DTYPES[self.precision] if enabled else None,
            "enabled": enabled,
        }

    @property
    def sum_dtype(self) -> torch.dtype:
        """The widest floating-point type of the device, for sums over many numbers."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def autocast(self) -> torch.autocast:
        """The context manager of a forward pass."""
        return torch.autocast(**self.autocast_options)

    def new_scaler(self) -> torch.amp.GradScaler:
        """Returns a loss scaler in its initial state, which is enabled with fp16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        """Wraps a model in `DistributedDataParallel`, if there is more than one process."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over all processes, in place."""
        if self.world_size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Waits until all processes have called this."""
        self.broadcast(0.0)

    def broadcast(self, number: float) -> float:
        """Returns rank 0's number in all processes."""
        mine = torch.tensor(number if self.rank == 0 else 0.0, dtype=self.sum_dtype, device=self.device)
        return self.all_reduce_sum(mine).item()


def init_runtime(device: str = "auto", precision: str = "auto", *, deterministic: bool = False) -> Runtime:
    """Selects the device and the precision, and joins the process group if ``torchrun`` has launched several processes.

    Args:
        device: ``auto`` (CUDA, then Apple's MPS, then the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto`` (see `best_precision`), ``fp32``, ``bf16`` or ``fp16``.
        deterministic: Use deterministic algorithms, where CUDA has a choice of them.

    Raises:
        InputError: If the device is not available or does not support the precision.
    """
    launch = launch_env()
    chosen = _resolve_device(device)
    if launch.world_size > 1 and chosen.type == "cuda":
        chosen = _resolve_device(f"cuda:{launch.local_rank}")
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)  # what synchronizes, pins memory or asks for capabilities takes the current one
    precision = _resolve_precision(precision, chosen)
    if chosen.type == "cpu":
        keep_freed_memory()
    # All batches but an epoch's last have one shape, for which cuDNN may try out its algorithms.
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    # Only warn: torch refuses some operations by their kind, whether or not they are deterministic here.
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    if launch.world_size > 1 and not distributed.is_initialized():
        _init_process_group("nccl" if chosen.type == "cuda" else "gloo", launch)
    return Runtime(chosen, precision, launch.rank, launch.world_size)


def resolve_runtime(device: str = "auto", precision: str = "auto") -> Runtime:
    """Returns the runtime of a forward pass in this process alone, and changes no setting; see `init_runtime`."""
    chosen = _resolve_device(device)
    return Runtime(chosen, _resolve_precision(precision, chosen))


def best_precision(device: torch.device) -> str:
    """The fastest precision that the device has in hardware and this network trains well in.

    bf16 where there are instructions for it, fp16 with loss scaling on older CUDA devices, fp32 elsewhere: emulated
    bf16 is slower than fp32.
    """
    if device.type == "cuda":
        with nullcontext() if device.index is None else torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        # Not in every torch from 2.10 on; without it nothing is known of the processor.
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
    return "fp32"


def default_num_workers(device: torch.device) -> int:
    """Number of data loading processes for a device: the cores, divided among the training processes of this machine.

    A CPU spends 1 to 2 % of its time on augmentation: workers would only take cores from the training step.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if device.type == "cpu" else min(max(1, cores // launch_env().local_world_size), 16)


def keep_freed_memory() -> None:
    """Makes this process keep the memory it frees, if the C library is glibc.

    It would give every large block back to the kernel, and get it back a page at a time, each of them zeroed: some
    360,000 page faults in a step of 512 images on a CPU. results/LOG.md has what that costs.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no blocks of their own, which go back when they are freed
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap


def _init_process_group(backend: str, launch: LaunchEnv) -> None:
    """Joins the processes of this attempt: torchrun's store still holds the addresses of those that it restarts."""
    try:
        store, rank, world_size = next(distributed.rendezvous("env://", launch.rank, launch.world_size))
    except ValueError as error:  # MASTER_ADDR or MASTER_PORT is missing
        raise InputError(str(error)) from None
    attempt = distributed.PrefixStore(f"attempt {launch.restart_count}", store)
    distributed.init_process_group(backend, store=attempt, rank=rank, world_size=world_size)
    atexit.register(distributed.destroy_process_group)


def _resolve_device(name: str) -> torch.device:
    if name == "auto":
        available = torch.accelerator.current_accelerator(check_available=True)
        if available is not None and available.type in ("cuda", "mps"):
            return available
        _warn_of_unusable_gpu()
        return torch.device("cpu")
    kind, _, index = str(name).partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(kind, 0)
    if not (index or "0").isdecimal() or int(index or 0) >= count:
        present = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        present += ["mps"] if torch.backends.mps.is_available() else []
        gpu = {"cuda": "CUDA", "mps": "Apple"}.get(kind)
        why = f"no {gpu} GPU was found; " if gpu and not count else ""
        raise InputError(f"--device {name}: {why}must be one of {', '.join(['auto', 'cpu', *present])} here")
    return torch.device(name)


@functools.cache  # once: a sweep resolves its device again for every training
def _warn_of_unusable_gpu() -> None:
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not _has_nvidia_driver():
        return
    cause = "torch finds no GPU it can use: the driver may be too old for it, or the container has no access"
    if torch.version.cuda is None:
        cause = "this build of torch is without CUDA: install one that has it (pytorch.org)"
    logger.warning(f"an NVIDIA driver is present, but the CPU is used: {cause}. --device cpu avoids this warning")


def _has_nvidia_driver() -> bool:
    # The first is Linux's, the second comes with the driver on Windows and WSL as well.
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _resolve_precision(name: str, device: torch.device) -> str:
    if name == "auto":
        return best_precision(device)
    if name not in DTYPES:
        raise InputError(f"--precision {name}: must be one of auto, {', '.join(DTYPES)}")
    if name == "fp16" and device.type != "cuda":
        raise InputError(f"--precision fp16: must be auto, fp32 or bf16 on {device.type}; fp16 is for CUDA devices")
    return name
