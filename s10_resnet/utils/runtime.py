"""Where the numbers are crunched, in which format, and by how many processes."""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from s10_resnet.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """A device, a number format, and this process's place among those that train together.

    With fp32 both autocast and scaler are there and do nothing; so do the methods that speak to other processes, where
    there are none.
    """

    device: torch.device
    precision: str
    scaler: torch.amp.GradScaler
    rank: int = 0
    world_size: int = 1

    @property
    def autocast_options(self) -> dict:
        """Keyword arguments of `torch.autocast`."""
        return {
            "device_type": self.device.type,
            "dtype": DTYPES[self.precision] if self.precision != "fp32" else None,
            "enabled": self.precision != "fp32",
        }

    @property
    def sum_dtype(self) -> torch.dtype:
        """What to add many numbers up in: the widest format of the device."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(**self.autocast_options)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model, its gradients averaged over all processes. Rank 0's weights and buffers are everybody's."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

    def total(self, tensor: Tensor) -> Tensor:
        """The tensor, changed into its sum over all processes."""
        if self.world_size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def meet(self) -> None:
        """Waits until all processes have come here."""
        self.share(0.0)

    def share(self, number: float) -> float:
        """Rank 0's number, once all processes have come here."""
        mine = number if self.rank == 0 else 0.0
        return self.total(torch.tensor(mine, dtype=self.sum_dtype, device=self.device)).item()


def start(device: str, precision: str, *, deterministic: bool = False) -> Runtime:
    """Settles what ``auto`` means on this machine, and joins the processes that ``torchrun`` has started.

    Args:
        device: ``auto`` (CUDA, then Apple's MPS, then the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto`` (see `best_precision`), ``fp32``, ``bf16`` or ``fp16``.
        deterministic: Take algorithms that give the same bits every time, where CUDA has a choice of them.

    Raises:
        InputError: For a device that is not there, or a format that it cannot train in.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))  # this one and the next are torchrun's
    chosen = _device(device)
    if world_size > 1 and chosen.type == "cuda":
        chosen = _device(f"cuda:{os.environ['LOCAL_RANK']}")
    precision = best_precision(chosen) if precision == "auto" else precision
    if precision == "fp16" and chosen.type != "cuda":
        raise InputError(f"--precision fp16: must be auto, fp32 or bf16 on {chosen.type}; fp16 is for CUDA devices")
    if chosen.type == "cpu":
        keep_freed_memory()
    # All batches but an epoch's last have one shape, for which cuDNN may try out its algorithms.
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        # Only warn: torch goes by kinds of operations, and this has not been tried on a CUDA device yet.
        torch.use_deterministic_algorithms(True, warn_only=True)
    scaler = torch.amp.GradScaler(chosen.type, enabled=precision == "fp16")
    if world_size == 1:
        return Runtime(chosen, precision, scaler)
    if not distributed.is_initialized():
        _join("nccl" if chosen.type == "cuda" else "gloo")
    return Runtime(chosen, precision, scaler, distributed.get_rank(), world_size)


def best_precision(device: torch.device) -> str:
    """The fastest format the device has in hardware and this network trains well in.

    bf16 where there are instructions for it, fp16 with loss scaling on older CUDA devices, fp32 elsewhere: emulated
    bf16 is slower than fp32.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        # Not in every torch from 2.10 on; without it nothing is known of the processor.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
    return "fp32"


def default_workers(device: torch.device) -> int:
    """Augmentation processes for a device.

    A CPU spends 1 to 2 % of its time on augmentation: workers would only take cores from the training step.
    """
    return 0 if device.type == "cpu" else min(_usable_cores(), 16)


def keep_freed_memory() -> None:
    """Has this process keep the memory it frees, where the C library is glibc.

    It would give every large block back to the kernel, and get it back a page at a time, each of them zeroed: some
    360,000 page faults in a step of 512 images on a CPU. results/LOG.md has what that costs.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no blocks of their own, which go back when they are freed
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap


def _join(backend: str) -> None:
    """Joins the processes of this attempt: torchrun's store still holds the addresses of those that it restarts."""
    store, rank, world_size = next(distributed.rendezvous("env://"))
    attempt = distributed.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    distributed.init_process_group(backend, store=attempt, rank=rank, world_size=world_size)
    atexit.register(distributed.destroy_process_group)


def _device(name: str) -> torch.device:
    if name == "auto":
        available = torch.accelerator.current_accelerator(check_available=True)
        return available if available is not None and available.type in ("cuda", "mps") else torch.device("cpu")
    kind, _, index = name.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(index or 0) >= count:
        present = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        present += ["mps"] if torch.backends.mps.is_available() else []
        raise InputError(f"--device {name}: must be one of {', '.join(['auto', 'cpu', *present])} on this machine")
    return torch.device(name)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
