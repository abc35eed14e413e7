"""What a device tells of itself: this process for real, GPUs that are not here as plain values."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from engine.telemetry import CpuTelemetry, CudaTelemetry, sample

GIB = 1 << 30


@dataclass
class SmallGpu:
    """A GPU as NVML answers for it; None where this card does not support the question."""

    uuid: str
    used: int | None = 20 * GIB
    utilization: int | None = 90
    milliwatts: int | None = 300_000


class SmallNvml:
    """The few calls of pynvml that telemetry makes, over a list of GPUs."""

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus: SmallGpu, fault: str = "") -> None:
        self.gpus, self.fault = gpus, fault

    def nvmlInit(self) -> None:
        if self.fault:
            raise self.NVMLError(self.fault)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> SmallGpu:
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetMemoryInfo(self, gpu: SmallGpu) -> SimpleNamespace:
        return SimpleNamespace(used=self._known(gpu.used))

    def nvmlDeviceGetUtilizationRates(self, gpu: SmallGpu) -> SimpleNamespace:
        return SimpleNamespace(gpu=self._known(gpu.utilization))

    def nvmlDeviceGetPowerUsage(self, gpu: SmallGpu) -> int:
        return self._known(gpu.milliwatts)

    def _known(self, value: int | None) -> int:
        if value is None:
            raise self.NVMLError("Not Supported")
        return value


class SmallMemory:
    """torch.cuda's count of what it took of each GPU."""

    def memory_reserved(self, device: int) -> int:
        return (device + 1) * 8 * GIB

    def max_memory_allocated(self, device: int) -> int:
        return (device + 1) * 6 * GIB


TORCH = {"device_memory_gib": 8.0, "device_memory_peak_gib": 6.0}


def look(*gpus: SmallGpu, uuids: tuple[str, ...] = ("a",), first: int = 0, fault: str = "") -> dict[str, float]:
    return CudaTelemetry(first, list(uuids), memory=SmallMemory(), nvml=SmallNvml(*gpus, fault=fault)).sample()


def test_a_gpu_tells_memory_utilisation_and_power_with_their_units() -> None:
    nvml = {"device_memory_used_gib": 20.0, "device_utilization_percent": 90.0, "device_power_watts": 300.0}
    assert look(SmallGpu("GPU-a")) == {**TORCH, **nvml}


def test_gpus_are_found_by_uuid_and_not_by_nvmls_order() -> None:
    hidden, mine = SmallGpu("GPU-hidden", used=1 * GIB), SmallGpu("GPU-a", used=5 * GIB)
    assert look(hidden, mine)["device_memory_used_gib"] == 5
    assert look(hidden, mine, first=1)["device_memory_gib"] == 16


def test_several_gpus_are_one_line_of_the_fullest_the_mean_and_the_sum() -> None:
    found = look(SmallGpu("GPU-a"), SmallGpu("GPU-b", 30 * GIB, 50, 100_500), uuids=("a", "b"))
    assert found == {
        **TORCH,
        "device_memory_used_gib": 30.0,
        "device_utilization_percent": 70.0,
        "device_power_watts": 400.5,
    }


def test_what_the_card_does_not_support_is_left_out_alone() -> None:
    assert "device_power_watts" not in look(SmallGpu("GPU-a", milliwatts=None))
    assert look(SmallGpu("GPU-a", milliwatts=None))["device_utilization_percent"] == 90
    # A slice of a divided GPU knows its memory and no more; one that shares the machine's memory does not know that.
    assert look(SmallGpu("MIG-a", utilization=None, milliwatts=None)) == {**TORCH, "device_memory_used_gib": 20.0}
    assert look(SmallGpu("GPU-a", used=None)).keys() == {*TORCH, "device_utilization_percent", "device_power_watts"}


def test_an_idle_gpu_says_zero() -> None:
    assert look(SmallGpu("GPU-a", utilization=0))["device_utilization_percent"] == 0


def test_without_nvml_torchs_numbers_are_all_there_is() -> None:
    assert look(fault="Driver Not Loaded") == TORCH
    assert look(SmallGpu("GPU-other")) == TORCH


def test_a_busy_process_on_the_cpu_shows_its_memory_and_its_share_of_the_cores() -> None:
    telemetry = CpuTelemetry()
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    busy = telemetry.sample()
    time.sleep(0.1)
    idle = telemetry.sample()
    assert busy.keys() == {"device_memory_gib", "device_utilization_percent"}
    assert 0.01 < busy["device_memory_gib"] < 100
    assert idle["device_utilization_percent"] < busy["device_utilization_percent"] <= 100


def test_a_sample_takes_less_than_a_millisecond() -> None:
    device = torch.device("cpu")
    sample(device)
    took = []
    for _ in range(50):
        started = time.perf_counter()
        sample(device)
        took.append(time.perf_counter() - started)
    assert min(took) < 1e-3
