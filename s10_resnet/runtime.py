"""Where the numbers are crunched and in which format."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from s10_resnet.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """A device and a number format. With fp32 both autocast and scaler are there and do nothing."""

    device: torch.device
    precision: str
    scaler: torch.amp.GradScaler

    @property
    def autocast_options(self) -> dict:
        """Keyword arguments of `torch.autocast`."""
        return {
            "device_type": self.device.type,
            "dtype": DTYPES[self.precision] if self.precision != "fp32" else None,
            "enabled": self.precision != "fp32",
        }

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(**self.autocast_options)


def start(device: str, precision: str) -> Runtime:
    """Settles what ``auto`` means on this machine.

    Args:
        device: ``auto`` (CUDA, then Apple's MPS, then the CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto`` (see `best_precision`), ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        InputError: For a device that is not there, or a format that it cannot train in.
    """
    chosen = _device(device)
    precision = best_precision(chosen) if precision == "auto" else precision
    if precision == "fp16" and chosen.type != "cuda":
        raise InputError(f"--precision fp16: must be auto, fp32 or bf16 on {chosen.type}; fp16 is for CUDA devices")
    return Runtime(chosen, precision, torch.amp.GradScaler(chosen.type, enabled=precision == "fp16"))


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
