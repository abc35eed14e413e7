"""What a run takes of its device at this moment: memory, utilisation, power. One place for both CPU and GPU, and what the card does not tell is left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from engine.hardware import usable_cores

if TYPE_CHECKING:
    import torch

GIB = 2**30
MILLIWATTS = 1000


def sample(device: torch.device, *, num_devices: int = 1) -> dict[str, float]:
    """How the device of this process is used, for a line of metrics.jsonl.

    `num_devices` is the number of GPUs of this machine that the run uses, this process's first; NVML speaks of them all.

    device_memory_gib: what torch holds of the GPU's memory (GiB); on the CPU, this process's resident memory.
    device_memory_peak_gib: the most that tensors took of it at one time; GPU only.
    device_memory_used_gib: what is taken of the fullest GPU, by whatever process; GPU only.
    device_utilization_percent: the share of NVML's last sample (up to a second) in which a kernel ran, mean of the GPUs; on
        the CPU, the share of the usable cores' time that this process took since the last call.
    device_power_watts: drawn now, sum of the GPUs; GPU only.
    """
    if device.type != "cuda":
        return _cpu().sample()
    return _cuda(device.index, num_devices).sample()


@cache
def _cpu() -> CpuTelemetry:
    return CpuTelemetry()


@cache
def _cuda(index: int | None, num_devices: int) -> CudaTelemetry:
    import torch

    first = torch.cuda.current_device() if index is None else index
    uuids = [str(torch.cuda.get_device_properties(first + place).uuid) for place in range(num_devices)]
    return CudaTelemetry(first, uuids, memory=torch.cuda)


class CpuTelemetry:
    """This process on the CPU, between two samples. Its data workers are processes of their own and not counted."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._cores = usable_cores()
        self._wall, self._busy = time.perf_counter(), time.process_time()

    def sample(self) -> dict[str, float]:
        wall, busy = time.perf_counter(), time.process_time()
        share = (busy - self._busy) / max(wall - self._wall, 1e-6) / self._cores
        self._wall, self._busy = wall, busy
        memory = self._process.memory_info().rss / GIB
        return {"device_memory_gib": round(memory, 3), "device_utilization_percent": round(min(100.0, 100 * share), 1)}


class CudaTelemetry:
    """The GPUs of a run, as torch and NVML see them. NVML finds them by UUID: it knows neither CUDA's order nor what
    CUDA_VISIBLE_DEVICES hides. `nvml` (the pynvml module) and `memory` (torch.cuda) stand here to be replaced in tests."""

    def __init__(self, first: int, uuids: list[str], *, memory: Any, nvml: Any = None) -> None:
        if nvml is None:
            import pynvml as nvml
        self._nvml, self._memory, self._first = nvml, memory, first
        self._handles: list[Any] = []
        with suppress(nvml.NVMLError):  # no NVML on this system (ROCm, Jetson): torch's numbers are all there is
            nvml.nvmlInit()
            self._handles = [self._handle(uuid) for uuid in uuids]

    def _handle(self, uuid: str) -> Any:
        """torch gives a UUID without the prefix by which NVML tells a GPU from a slice of one."""
        bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
        try:
            return self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{bare}")
        except self._nvml.NVMLError:
            return self._nvml.nvmlDeviceGetHandleByUUID(f"MIG-{bare}")

    def sample(self) -> dict[str, float]:
        return dict(self._values())

    def _values(self) -> Iterator[tuple[str, float]]:
        nvml = self._nvml
        yield "device_memory_gib", round(self._memory.memory_reserved(self._first) / GIB, 3)
        yield "device_memory_peak_gib", round(self._memory.max_memory_allocated(self._first) / GIB, 3)
        if used := self._ask(lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).used):
            yield "device_memory_used_gib", round(max(used) / GIB, 3)
        if busy := self._ask(lambda handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu):
            yield "device_utilization_percent", sum(busy) / len(busy)
        if power := self._ask(nvml.nvmlDeviceGetPowerUsage):
            yield "device_power_watts", round(sum(power) / MILLIWATTS, 1)

    def _ask(self, question: Callable[[Any], float]) -> list[float]:
        """The answer of every GPU, or none where one of them has none."""
        try:
            return [question(handle) for handle in self._handles]
        except self._nvml.NVMLError:
            return []
