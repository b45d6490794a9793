import os
import platform
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from s10_resnet.errors import InputError
from s10_resnet.utils import runtime


def test_auto_finds_a_device_that_works():
    run = runtime.init_runtime("auto", "auto")
    assert torch.ones(2, device=run.device).sum().item() == 2
    assert run.precision in runtime.DTYPES


def test_fp16_is_for_cuda():
    with pytest.raises(InputError, match=r"^--precision fp16: must be auto, fp32 or bf16 on cpu"):
        runtime.init_runtime("cpu", "fp16")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_gives_the_format_asked_for(precision, dtype):
    run = runtime.init_runtime("cpu", precision)
    with run.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx512_f": True}, "fp32"), ({}, "fp32")],
)
def test_a_cpu_takes_bf16_only_where_it_has_instructions_for_it(monkeypatch, capabilities, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert runtime.best_precision(torch.device("cpu")) == precision


def test_a_torch_that_knows_nothing_of_the_cpu_takes_fp32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert runtime.best_precision(torch.device("cpu")) == "fp32"


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp16")])
def test_older_cuda_devices_take_fp16(monkeypatch, native, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert runtime.best_precision(torch.device("cuda")) == precision


class FakeCuda:
    """Two CUDA devices that record which is current."""

    def __init__(self, monkeypatch):
        self.current, self.asked = 0, []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "set_device", self.set_device)
        monkeypatch.setattr(torch.cuda, "device", self.device)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", self.is_bf16_supported)

    def set_device(self, device):
        self.current = device.index

    @contextmanager
    def device(self, device):
        before, self.current = self.current, device.index
        yield
        self.current = before

    def is_bf16_supported(self, including_emulation):
        self.asked.append(self.current)
        return self.current == 1  # the second is a newer one


@pytest.mark.parametrize(("name", "index", "precision"), [("cuda:1", 1, "bf16"), ("cuda:0", 0, "fp16")])
def test_the_device_of_a_training_is_made_current(monkeypatch, name, index, precision):
    cuda = FakeCuda(monkeypatch)
    run = runtime.init_runtime(name)
    assert (str(run.device), cuda.current, run.precision) == (name, index, precision)
    assert cuda.asked == [index]


def test_every_rank_makes_its_device_current(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runtime, "_init_process_group", lambda backend, launch: None)
    assert str(runtime.init_runtime("cuda", "fp32").device) == "cuda:1"
    assert cuda.current == 1


def test_a_forward_pass_asks_its_device_and_leaves_the_current_one(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    assert runtime.resolve_runtime("cuda:1", "auto").precision == "bf16"
    assert (cuda.asked, cuda.current) == ([1], 0)


@pytest.mark.parametrize(
    ("driver", "visible", "build", "warning"),
    [
        (True, None, "13.2", "an NVIDIA driver is present, but the CPU is used: torch finds no GPU it can use"),
        (True, "0", None, "an NVIDIA driver is present, but the CPU is used: this build of torch is without CUDA"),
        (True, "", "13.2", ""),  # someone has hidden the GPUs
        (False, None, None, ""),
    ],
)
def test_an_nvidia_driver_without_cuda_is_warned_of_once(monkeypatch, capsys, driver, visible, build, warning):
    monkeypatch.setattr(runtime, "_has_nvidia_driver", lambda: driver)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    runtime._warn_of_unusable_gpu.cache_clear()
    runtime.init_runtime("cpu", "fp32")  # as asked for
    assert not capsys.readouterr().err
    for _ in range(2):
        assert runtime.init_runtime("auto", "fp32").device.type == "cpu"
    said = capsys.readouterr().err
    assert said.count(warning) == 1 if warning else not said
    runtime._warn_of_unusable_gpu.cache_clear()


def test_a_driver_is_found_by_its_program(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    before = runtime._has_nvidia_driver()
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    assert runtime._has_nvidia_driver()
    assert before == Path("/proc/driver/nvidia/version").exists()


def test_workers_help_a_device_but_take_cores_from_a_cpu(monkeypatch):
    assert runtime.default_num_workers(torch.device("cpu")) == 0
    for cores, workers in ((1, 1), (8, 8), (64, 16)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: range(cores))
        assert runtime.default_num_workers(torch.device("cuda")) == workers


@pytest.mark.parametrize(("cores", "ranks", "workers"), [(16, 2, 8), (64, 8, 8), (64, 2, 16), (2, 4, 1)])
def test_the_processes_of_a_machine_share_its_cores(monkeypatch, cores, ranks, workers):
    launch = {"WORLD_SIZE": 2 * ranks, "RANK": 1, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": ranks}  # two machines
    for name, value in launch.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores))
    assert runtime.default_num_workers(torch.device("cuda")) == workers


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_kept_for_the_next_step_on_a_cpu():
    script = """
import resource, sys, torch
from s10_resnet.utils import runtime
runtime._resolve_device = torch.device
runtime.init_runtime(sys.argv[1], "fp32")
for _ in range(4):
    torch.ones(80 * 2**20, dtype=torch.uint8)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(64 * 2**20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""
    on_cpu, elsewhere = (
        int(subprocess.run([sys.executable, "-c", script, device], capture_output=True, check=True).stdout)
        for device in ("cpu", "meta")
    )
    assert on_cpu < elsewhere / 3


def test_one_process_speaks_to_nobody():
    run = runtime.init_runtime("cpu", "fp32")
    model, tensor = torch.nn.Linear(2, 2), torch.ones(3)
    assert (run.rank, run.world_size) == (0, 1)
    assert run.wrap_ddp(model) is model
    assert run.all_reduce_sum(tensor) is tensor
    assert run.broadcast(0.25) == 0.25


def test_a_run_is_deterministic_if_it_is_asked_for_whatever_the_one_before_was(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, warn_only: asked.append((mode, warn_only)))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    runtime.init_runtime("cpu", "fp32", deterministic=True)
    assert not torch.backends.cudnn.benchmark
    runtime.init_runtime("cpu", "fp32")
    assert torch.backends.cudnn.benchmark
    assert asked == [(True, True), (False, True)]
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"


def test_a_launcher_without_an_address_is_one_line(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match="MASTER_ADDR"):
        runtime.init_runtime("cpu", "fp32")


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "cuda:x", "cuda:-1", "cpu:1", ""])
def test_a_device_of_an_unknown_name(name):
    with pytest.raises(InputError, match=rf"^--device {name}: .*must be one of auto, cpu"):
        runtime.init_runtime(name, "fp32")


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_missing_gpu_is_named(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=rf"^--device {name}: no CUDA GPU was found; must be one of auto, cpu here$"):
        runtime.resolve_runtime(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"^--device cuda:1: must be one of auto, cpu, cuda:0 here$"):
        runtime.resolve_runtime("cuda:1")


def test_a_device_may_be_torchs():
    assert runtime.resolve_runtime(torch.device("cpu")).device == torch.device("cpu")


def test_a_resolved_runtime_changes_nothing_of_the_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(runtime, "keep_freed_memory", None)
    resolved = runtime.resolve_runtime("cpu", "bf16")
    assert (str(resolved.device), resolved.precision, resolved.world_size) == ("cpu", "bf16", 1)
    assert torch.backends.cudnn.benchmark is False
    assert runtime.resolve_runtime("cpu", "auto").precision == runtime.best_precision(torch.device("cpu"))
    with pytest.raises(InputError, match=r"^--precision fp8: must be one of auto, fp32, bf16, fp16$"):
        runtime.resolve_runtime("cpu", "fp8")
