"""Hardware detection on machines that are not here: a small NVML, files of /proc and /sys, torch's answer as plain values."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contracts.workload import ROOT
from engine import hardware
from engine.hardware import DriverView, Gpu, TorchView, ask_nvml, detect, merge, select_visible

GIB = 1 << 30
CGROUP_V2 = "0::/user.slice/job\n"


class SmallNvml:
    """The few calls of pynvml that detection makes, over a list of GPUs."""

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus: Gpu, fault: str = "") -> None:
        self.gpus, self.fault, self.open = gpus, fault, False

    def nvmlInit(self) -> None:
        if self.fault:
            raise self.NVMLError(self.fault)
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"590.48.01"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Gpu:
        return self.gpus[index]

    def nvmlDeviceGetName(self, gpu: Gpu) -> str:
        return gpu.name

    def nvmlDeviceGetUUID(self, gpu: Gpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetCudaComputeCapability(self, gpu: Gpu) -> tuple[int, int]:
        return gpu.capability

    def nvmlDeviceGetMemoryInfo(self, gpu: Gpu) -> SimpleNamespace:
        if not gpu.memory:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(total=gpu.memory, free=gpu.free)

    def nvmlDeviceGetMigMode(self, gpu: Gpu) -> list[int]:
        if not gpu.name.startswith("NVIDIA A100"):
            raise self.NVMLError("Not Supported")
        return [int(gpu.mig), 0]


def l4(index: int) -> Gpu:
    return Gpu(index, f"GPU-{index}{index}{index}", "NVIDIA L4", 24 * GIB, 23 * GIB, (8, 9))


def as_torch(*gpus: Gpu, usable: bool = True) -> TorchView:
    found = [
        {
            "name": gpu.name,
            "uuid": gpu.uuid.removeprefix("GPU-"),
            "memory": gpu.memory - GIB // 4,
            "free": gpu.free - GIB,
            "capability": list(gpu.capability),
            "usable": usable,
        }
        for gpu in gpus
    ]
    return TorchView(tuple(found), "2.15.0", "13.2")


def must_not_be_asked() -> TorchView:
    raise AssertionError("torch was asked although there is no GPU")


def machine(root: Path, **files: str) -> Path:
    """A root folder with files; `__` in a name stands for a slash, `_dot_` for a dot."""
    for name, text in {"proc__meminfo": "MemTotal: 67108864 kB\nMemAvailable: 50331648 kB\n", **files}.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def look(root: Path, nvml: Any, torch: TorchView | None = None, **environment: str) -> Any:
    ask = must_not_be_asked if torch is None else lambda: torch
    return detect(root, environment=environment, nvml=nvml, ask_torch=ask, root=root, system="Linux")


def test_the_real_machine_is_described() -> None:
    found = detect()
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert 0 < found.free_memory <= found.memory
    assert found.free_disk > 0
    assert found.cpu
    assert str(found.cores) in found.fingerprint


def test_without_a_driver_torch_is_not_even_imported() -> None:
    code = "import sys; from engine.hardware import detect; detect(nvml=None); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_a_silent_nvml_without_any_sign_of_a_gpu_means_none(tmp_path: Path) -> None:
    found = look(machine(tmp_path), SmallNvml(fault="NVML Shared Library Not Found"))
    assert found.devices == ()
    assert found.notes == ()


def test_a_silent_nvml_with_a_device_file_asks_torch(tmp_path: Path) -> None:
    root = machine(tmp_path, dev__nvidia0="")
    found = look(root, SmallNvml(fault="Driver/library version mismatch"), as_torch(l4(0)))
    assert [one.name for one in found.devices] == ["NVIDIA L4"]
    assert "version mismatch" in found.notes[0]


def test_gpus_come_with_the_driver_and_free_memory_of_nvml(tmp_path: Path) -> None:
    nvml = SmallNvml(l4(0), l4(1))
    found = look(machine(tmp_path), nvml, as_torch(l4(0), l4(1)))
    assert [(one.index, one.free, one.capability) for one in found.devices] == [(0, 23 * GIB, (8, 9)), (1, 23 * GIB, (8, 9))]
    assert found.driver == "590.48.01"
    assert found.notes == ()
    assert not nvml.open


@pytest.mark.parametrize(
    ("wanted", "chosen", "noted"),
    [
        (None, [0, 1, 2, 3], ""),
        ("", [], "leaves 0 of 4"),
        ("-1", [], "leaves 0 of 4"),
        ("2", [2], "leaves 1 of 4"),
        ("3, 1", [3, 1], "leaves 2 of 4"),
        ("GPU-222,GPU-0", [2, 0], "leaves 2 of 4"),
        ("0,7,1", [0], "'7' names no further GPU"),
        ("1,1", [1], "'1' names no further GPU"),
        ("nonsense", [], "'nonsense' names no further GPU"),
        ("0,1,2,3", [0, 1, 2, 3], ""),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(wanted: str | None, chosen: list[int], noted: str) -> None:
    found, notes = select_visible([l4(index) for index in range(4)], wanted)
    assert [gpu.index for gpu in found] == chosen
    assert noted in " ".join(notes)
    assert bool(notes) == bool(noted)


def test_hidden_gpus_cost_no_import_of_torch(tmp_path: Path) -> None:
    found = look(machine(tmp_path), SmallNvml(l4(0)), CUDA_VISIBLE_DEVICES="")
    assert found.devices == ()
    assert "leaves 0 of 1" in found.notes[0]


def test_torchs_order_of_mixed_gpus_counts() -> None:
    small = Gpu(0, "GPU-a", "NVIDIA T4", 15 * GIB, 14 * GIB, (7, 5))
    big = Gpu(1, "GPU-b", "NVIDIA H200", 140 * GIB, 139 * GIB, (9, 0))
    devices, notes = merge([small, big], as_torch(big, small))
    assert [(one.index, one.name, one.free >> 30) for one in devices] == [(0, "NVIDIA H200", 139), (1, "NVIDIA T4", 14)]
    assert notes == []


def test_a_torch_without_cuda_leaves_the_cpu_and_says_so() -> None:
    devices, notes = merge([l4(0)], TorchView((), "2.15.0+cpu", None))
    assert devices == ()
    assert "NVIDIA L4" in notes[0]
    assert "build without CUDA" in notes[0]


def test_a_disagreement_on_the_number_is_noted() -> None:
    devices, notes = merge([l4(0), l4(1)], as_torch(l4(0)))
    assert len(devices) == 1
    assert "NVML shows 2 GPUs, torch 1" in notes[0]


def test_a_gpu_that_torch_is_not_built_for_is_left_out() -> None:
    old = Gpu(0, "GPU-a", "GeForce GTX 1080", 8 * GIB, 8 * GIB, (6, 1))
    devices, notes = merge([old], as_torch(old, usable=False))
    assert devices == ()
    assert "capability 6.1" in notes[0]


def test_mig_is_named_and_counts_as_its_slice(tmp_path: Path) -> None:
    whole = Gpu(0, "GPU-a", "NVIDIA A100-SXM4-40GB", 40 * GIB, 38 * GIB, (8, 0), mig=True)
    slice_of_it = TorchView(
        ({**as_torch(whole).devices[0], "name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "memory": 5 * GIB, "free": 4 * GIB},),
        "2.15.0",
    )
    found = look(machine(tmp_path), SmallNvml(whole), slice_of_it, CUDA_VISIBLE_DEVICES="MIG-123")
    assert found.devices[0].memory == 5 * GIB
    assert "divided by MIG" in " ".join(found.notes)


def test_a_gpu_that_shares_the_machines_memory_takes_torchs_number(tmp_path: Path) -> None:
    shared = Gpu(0, "GPU-a", "NVIDIA GB10", 0, 0, (12, 1))
    torch = TorchView(({**as_torch(shared).devices[0], "memory": 119 * GIB, "free": 100 * GIB},), "2.15.0", "13.2")
    found = look(machine(tmp_path), SmallNvml(shared), torch)
    assert (found.devices[0].memory >> 30, found.devices[0].free >> 30) == (119, 100)
    assert found.notes == ()


def test_when_torch_fails_nvmls_word_is_kept_and_the_failure_told(tmp_path: Path) -> None:
    found = look(machine(tmp_path), SmallNvml(l4(0)), TorchView(fault="ImportError: libcudart.so.13"))
    assert len(found.devices) == 1
    assert "libcudart" in found.notes[0]


def test_nvml_without_an_answer_says_why() -> None:
    assert ask_nvml(SmallNvml(fault="Insufficient Permissions")) == DriverView(fault="Insufficient Permissions")


def test_torch_itself_answers_in_a_child() -> None:
    view = hardware.torch_view()
    assert view.fault == ""
    assert view.version


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"proc__self__cgroup": CGROUP_V2, "sys__fs__cgroup__user_dot_slice__job__cpu_dot_max": "150000 100000"}, 1),
        ({"proc__self__cgroup": CGROUP_V2, "sys__fs__cgroup__user_dot_slice__cpu_dot_max": "400000 100000"}, 4),
        ({"proc__self__cgroup": CGROUP_V2, "sys__fs__cgroup__user_dot_slice__job__cpu_dot_max": "max 100000"}, 64),
        ({"proc__self__cgroup": "0::/../other\n", "sys__fs__cgroup__cpu_dot_max": "50000 100000"}, 1),
        (
            {
                "proc__self__cgroup": "4:cpu,cpuacct:/docker/a\n3:memory:/docker/a\n",
                "sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us": "800000",
                "sys__fs__cgroup__cpu__cpu_dot_cfs_period_us": "100000",
            },
            8,
        ),
        (
            {
                "proc__self__cgroup": "4:cpu,cpuacct:/\n",
                "sys__fs__cgroup__cpu,cpuacct__cpu_dot_cfs_quota_us": "-1",
                "sys__fs__cgroup__cpu,cpuacct__cpu_dot_cfs_period_us": "100000",
            },
            64,
        ),
    ],
)
def test_a_quota_of_the_control_group_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr(hardware, "affinity", lambda: 64)
    assert hardware.usable_cores(machine(tmp_path, **files)) == cores


def test_a_memory_limit_counts_and_cached_files_are_given_back(tmp_path: Path) -> None:
    group = "sys__fs__cgroup__user_dot_slice__job__memory_dot_"
    files = {
        f"{group}max": str(8 * GIB),
        f"{group}current": str(7 * GIB),
        f"{group}stat": f"anon 1\ninactive_file {3 * GIB}\n",
    }
    root = machine(tmp_path, proc__self__cgroup=CGROUP_V2, **files)
    assert hardware.find_memory(root) == (8 * GIB, 4 * GIB)


def test_a_version_1_limit_that_means_none_is_none(tmp_path: Path) -> None:
    group = "sys__fs__cgroup__memory__memory_dot_"
    files = {f"{group}limit_in_bytes": "9223372036854771712", f"{group}usage_in_bytes": "1"}
    root = machine(tmp_path, proc__self__cgroup="4:memory:/\n", **files)
    assert hardware.find_memory(root) == (64 * GIB, 48 * GIB)


def test_without_proc_memory_and_name_come_from_elsewhere(tmp_path: Path) -> None:
    total, available = hardware.find_memory(tmp_path)
    assert 0 < available <= total
    assert hardware.cpu_name(tmp_path, "Windows")
    assert hardware.cpu_flags(tmp_path) == set()


@pytest.mark.parametrize(
    ("cpuinfo", "name", "native"),
    [
        ("model name\t: AMD EPYC 9754  128-Core\nflags\t\t: fpu avx512_bf16\n", "AMD EPYC 9754 128-Core", True),
        ("model name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx512f\n", "Intel(R) Xeon(R)", False),
        ("Features\t: fp asimd bf16 sve\nModel\t\t: Raspberry Pi 5\n", "Raspberry Pi 5", True),
    ],
)
def test_the_processor_tells_its_name_and_bf16(tmp_path: Path, cpuinfo: str, name: str, native: bool) -> None:
    found = look(machine(tmp_path, proc__cpuinfo=cpuinfo), SmallNvml(fault="none"))
    assert (found.cpu, found.bf16_cpu) == (name, native)


def test_apples_gpu_is_said_to_be_unused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    found = detect(tmp_path, nvml=SmallNvml(fault="none"), root=machine(tmp_path), system="Darwin", environment={})
    assert "Apple's GPU is not used" in found.notes[0]
