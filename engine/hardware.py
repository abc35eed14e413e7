"""What this machine offers to this process: GPUs, cores, memory, disk. It looks and changes nothing; torch is asked in a child."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from contracts.plan import Device, Hardware

TORCH_SECONDS = 60
# The part of a GPU's memory by which two sources may differ: CUDA keeps some for itself.
MEMORY_TOLERANCE = 0.1
# Files that betray a GPU where NVML is silent: NVIDIA's own, a Jetson's, AMD's, the one of Windows' Linux.
SIGNS_OF_A_GPU = ("dev/nvidia0", "dev/nvhost-gpu", "dev/kfd", "dev/dxg")
NATIVE_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}

# Runs in a child process: asking CUDA makes a context of some hundred MB that would stay with us as long as we live.
TORCH_PROBE = """
import json, torch
found = []
for index in range(torch.cuda.device_count()):
    one = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    kinds = [name.split("_") for name in torch.cuda.get_arch_list()]
    kinds = [(kind, int(number.rstrip("af"))) for kind, number in kinds if number.rstrip("af").isdigit()]
    mine = one.major * 10 + one.minor
    usable = not kinds or torch.version.hip is not None or any(
        number <= mine and (kind == "compute" or number // 10 == one.major) for kind, number in kinds)
    found.append({"name": one.name, "uuid": str(getattr(one, "uuid", "")), "memory": one.total_memory, "free": free,
                  "capability": [one.major, one.minor], "usable": usable})
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda or torch.version.hip, "devices": found}))
"""


@dataclass(frozen=True)
class Gpu:
    """A GPU as NVML knows it, in the order of the PCI bus. Memory in bytes, 0 where the driver does not say."""

    index: int
    uuid: str
    name: str
    memory: int
    free: int
    capability: tuple[int, int]
    mig: bool = False


@dataclass(frozen=True)
class DriverView:
    """NVML's answer; `fault` says why there is none."""

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    fault: str = ""


@dataclass(frozen=True)
class TorchView:
    """torch's answer: devices in CUDA's order (plain values of TORCH_PROBE); `fault` says why there is none."""

    devices: tuple[Mapping[str, Any], ...] = ()
    version: str = ""
    cuda: str | None = None
    fault: str = ""


def detect(
    folder: Path = Path("."),
    *,
    environment: Mapping[str, str] = os.environ,
    nvml: Any = None,
    ask_torch: Callable[[], TorchView] | None = None,
    root: Path = Path("/"),
    system: str = platform.system(),
) -> Hardware:
    """The hardware that training in `folder` may use.

    NVML is asked first; torch, which takes seconds, only where there is or may be a GPU. `nvml` is the pynvml module,
    `root` the folder that /proc and /sys lie under; both, like `environment` and `system`, stand here to be replaced in tests.
    """
    view = ask_nvml(nvml)
    devices, notes = find_devices(view, environment, ask_torch or torch_view, root)
    machine = platform.machine()
    if system == "Darwin" and machine == "arm64":
        notes = [*notes, "Apple's GPU is not used: training runs on the CPU here"]
    memory, free_memory = find_memory(root)
    return Hardware(
        devices=devices,
        cpu=cpu_name(root, system),
        cores=usable_cores(root),
        memory=memory,
        free_memory=free_memory,
        free_disk=shutil.disk_usage(folder).free,
        platform=f"{system} {machine}",
        bf16_cpu=bool(NATIVE_BF16 & cpu_flags(root)),
        driver=view.driver,
        notes=tuple(notes),
    )


def ask_nvml(nvml: Any = None) -> DriverView:
    """Every NVIDIA GPU of the machine, whatever CUDA_VISIBLE_DEVICES says; `nvml` defaults to the pynvml module."""
    if nvml is None:
        try:
            import pynvml as nvml
        except ImportError:
            return DriverView(fault="the package nvidia-ml-py is not installed")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return DriverView(fault=str(error))
    try:
        gpus = tuple(_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
        return DriverView(gpus, _text(nvml.nvmlSystemGetDriverVersion()))
    except nvml.NVMLError as error:
        return DriverView(fault=str(error))
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except nvml.NVMLError:
        total = free = 0  # GPUs that share the machine's memory do not say
    try:
        mig = nvml.nvmlDeviceGetMigMode(handle)[0] == 1
    except nvml.NVMLError:
        mig = False
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    uuid, name = (_text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle)))
    return Gpu(index, uuid, name, total, free, (int(major), int(minor)), mig)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def torch_view() -> TorchView:
    """What this environment's torch makes of the GPUs, asked in a child process; takes 2 to 4 seconds."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", TORCH_PROBE], capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return TorchView(fault=f"torch did not answer within {TORCH_SECONDS} s")
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return TorchView(fault=last[0])
    value = json.loads(done.stdout.strip().splitlines()[-1])
    return TorchView(tuple(value["devices"]), value["version"], value["cuda"])


def find_devices(
    view: DriverView, environment: Mapping[str, str], ask_torch: Callable[[], TorchView], root: Path
) -> tuple[tuple[Device, ...], list[str]]:
    """The GPUs that training may use, in CUDA's order, and notes on what was odd."""
    wanted = environment.get("CUDA_VISIBLE_DEVICES")
    if view.fault:
        if not any((root / sign).exists() for sign in SIGNS_OF_A_GPU) or wanted in ("", "-1"):
            return (), []
        notes = [f"NVML gives no answer ({view.fault}): torch alone was asked about GPUs"]
        visible: Sequence[Gpu] = ()
    else:
        visible, notes = select_visible(view.gpus, wanted)
        if not visible:
            return (), notes
    torch = ask_torch()
    if torch.fault:
        notes.append(f"torch cannot be asked about the GPUs: {torch.fault}")
        return tuple(
            Device(place, one.name, one.memory, one.free, one.capability) for place, one in enumerate(visible)
        ), notes
    devices, more = merge(visible, torch)
    return devices, [*notes, *more]


def select_visible(gpus: Sequence[Gpu], wanted: str | None) -> tuple[list[Gpu], list[str]]:
    """The GPUs that a CUDA_VISIBLE_DEVICES of `wanted` leaves, with CUDA's rule: the first bad entry ends the list."""
    if wanted is None or not gpus:
        return list(gpus), []
    notes, chosen = [], []
    for entry in (part.strip() for part in wanted.split(",")):
        named = [gpu for gpu in gpus if _names(entry, gpu)]
        if not named or named[0] in chosen:
            if entry not in ("", "-1"):
                notes.append(
                    f"CUDA_VISIBLE_DEVICES={wanted}: {entry!r} names no further GPU; CUDA ignores it and what follows"
                )
            break
        chosen.append(named[0])
    if len(chosen) < len(gpus):
        notes.append(f"CUDA_VISIBLE_DEVICES={wanted!r} leaves {len(chosen)} of {len(gpus)} GPUs")
    return chosen, notes


def _names(entry: str, gpu: Gpu) -> bool:
    if entry.startswith("MIG-"):
        return gpu.mig
    return (entry.isdigit() and int(entry) == gpu.index) or (entry.startswith("GPU-") and gpu.uuid.startswith(entry))


def merge(visible: Sequence[Gpu], torch: TorchView) -> tuple[tuple[Device, ...], list[str]]:
    """One list from the two: torch decides what can be used and in which order, NVML knows what is free in it."""
    notes, devices = [], []
    if not torch.devices and visible:
        reason = (
            "the driver may be too old for it: `slipway doctor` says more"
            if torch.cuda
            else "it is a build without CUDA: install the one from pytorch.org"
        )
        names = ", ".join(gpu.name for gpu in visible)
        return (), [
            f"the driver shows {names}, torch {torch.version} can use none of it; {reason}. Training runs on the CPU"
        ]
    if visible and len(torch.devices) != len(visible):
        notes.append(f"NVML shows {len(visible)} GPUs, torch {len(torch.devices)}: torch's number counts")
    by_uuid = {gpu.uuid.removeprefix("GPU-"): gpu for gpu in visible}
    for index, one in enumerate(torch.devices):
        if not one["usable"]:
            notes.append(
                f"GPU {index} ({one['name']}, capability {'.'.join(map(str, one['capability']))}) is not supported by torch"
                f" {torch.version}; it and those behind it are left out (CUDA_VISIBLE_DEVICES chooses others)"
            )
            break
        gpu = by_uuid.get(str(one["uuid"]).removeprefix("GPU-"))
        free = int(one["free"])
        if gpu is not None and gpu.memory and abs(gpu.memory - one["memory"]) <= MEMORY_TOLERANCE * gpu.memory:
            free = gpu.free
        elif gpu is not None and gpu.memory:
            notes.append(
                f"GPU {index} ({one['name']}): NVML says {gpu.memory / 2**30:.1f} GiB, torch {one['memory'] / 2**30:.1f}"
                " GiB: torch's number counts"
            )
        devices.append(Device(index, one["name"], int(one["memory"]), free, (one["capability"][0], one["capability"][1])))
    notes += [
        f"GPU {gpu.index} ({gpu.name}) is divided by MIG: CUDA gives a process one slice of it, so it counts as one small device"
        for gpu in visible
        if gpu.mig
    ]
    return tuple(devices), notes


def usable_cores(root: Path = Path("/")) -> int:
    """Logical cores that this process may keep busy: its affinity, cut by the quota of its control group (at least 1)."""
    return max(1, min(affinity(), math.floor(min(cpu_quota(root), 1e6))))


def affinity() -> int:
    """Logical cores that this process may be scheduled on. macOS has no affinity; there it is all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    import psutil

    process = psutil.Process()
    return len(process.cpu_affinity() or []) if hasattr(process, "cpu_affinity") else os.cpu_count() or 1


def cpu_quota(root: Path) -> float:
    """Cores' worth of time that the control groups (version 1 or 2) allow; infinity without a limit."""
    limits = [math.inf]
    for group in control_groups("cpu", root):
        words = _read(group / "cpu.max").split()
        if len(words) != 2:
            words = [_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")]
        if words[0].isdigit() and words[1].isdigit() and int(words[1]):
            limits.append(int(words[0]) / int(words[1]))
    return min(limits)


def control_groups(controller: str, root: Path) -> list[Path]:
    """Folders of the control groups that may limit this process, innermost first, for both versions."""
    folders = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        inside = PurePosixPath(*(part for part in path.split("/") if part not in ("", "..")))
        for mount in [controller, names] if names else ["", "unified"]:
            folders += [root / "sys/fs/cgroup" / mount / part for part in (inside, *inside.parents)]
    return list(dict.fromkeys(folders))


def find_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Main memory in bytes, whole and available, as far as the control groups let this process have it."""
    lines = [line.split() for line in _read(root / "proc/meminfo").splitlines()]
    known = {words[0]: int(words[1]) << 10 for words in lines if len(words) > 1 and words[1].isdigit()}
    if "MemTotal:" in known and "MemAvailable:" in known:
        total, available = known["MemTotal:"], known["MemAvailable:"]
    else:
        import psutil

        total, available = (psutil.virtual_memory().total, psutil.virtual_memory().available)
    whole = total
    for group in control_groups("memory", root):
        limit = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        used = _read(group / "memory.current") or _read(group / "memory.usage_in_bytes")
        if limit.isdigit() and int(limit) < whole:
            statistics = dict(line.split() for line in _read(group / "memory.stat").splitlines())
            # Cached files count as used and are given up when memory is asked for.
            cached = int(statistics.get("inactive_file", statistics.get("total_inactive_file", 0)))
            total = min(total, int(limit))
            available = min(available, max(0, int(limit) - int(used or 0) + cached))
    return total, available


def cpu_name(root: Path = Path("/"), system: str = platform.system()) -> str:
    """The processor's name as its maker gives it, or the nearest thing the system knows."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            return " ".join(value.split())
    if system == "Darwin" and shutil.which("sysctl"):
        found = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        if found.stdout.strip():
            return found.stdout.strip()
    return platform.processor() or platform.machine()


def cpu_flags(root: Path = Path("/")) -> set[str]:
    """The processor's features as Linux spells them (x86 `flags`, ARM `Features`); empty on other systems."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _read(path: Path) -> str:
    """The text of a small system file, stripped; empty where there is none to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
