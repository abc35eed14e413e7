"""The plan as a table: what each machine of the seeds gets, and that the global batch is always kept."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from contracts.errors import SlipwayError
from contracts.plan import Device, Hardware, Plan
from contracts.settings import TrainSettings
from engine.planning import largest_divisor, plan, process_group, thread_speed

GIB = 1 << 30
RTX_4090 = ("NVIDIA GeForce RTX 4090", 24564, (8, 9))
L4 = ("NVIDIA L4", 23034, (8, 9))
T4 = ("Tesla T4", 15360, (7, 5))
A100_80 = ("NVIDIA A100-SXM4-80GB", 81920, (8, 0))
H100 = ("NVIDIA H100 80GB HBM3", 81559, (9, 0))
H200 = ("NVIDIA H200", 143771, (9, 0))
A100_40 = ("NVIDIA A100-SXM4-40GB", 40960, (8, 0))
LAPTOP = ("NVIDIA GeForce RTX 4060 Laptop GPU", 8188, (8, 9))
RTX_3060 = ("NVIDIA GeForce RTX 3060", 12288, (8, 6))
GTX_1060 = ("NVIDIA GeForce GTX 1060 3GB", 3072, (6, 1))


def machine(*gpus: Any, cores: int = 32, memory: int = 128, free: int | None = None, **fields: Any) -> Hardware:
    """GPUs as (name, MiB, capability); main memory in GiB."""
    devices = tuple(Device(place, name, mib << 20, mib << 20, kind) for place, (name, mib, kind) in enumerate(gpus))
    base = Hardware(devices, "CPU", cores, memory * GIB, (free or memory) * GIB, 500 * GIB, "Linux x86_64")
    return dataclasses.replace(base, **fields)


def layout(made: Plan) -> tuple[Any, ...]:
    return (made.backend, made.device, made.ranks, made.micro_batch, made.accumulation, made.precision)


@pytest.mark.parametrize(
    ("hardware", "batch", "ghost", "expected"),
    [
        pytest.param(machine(RTX_4090, RTX_4090), 64, 16, ("ddp", "cuda", 2, 16, 2, "bf16"), id="RTX 4090 x2"),
        pytest.param(machine(*[L4] * 4, cores=48), 256, 16, ("ddp", "cuda", 4, 16, 4, "bf16"), id="L4 x4, the seed's own"),
        pytest.param(machine(*[A100_80] * 8, cores=96), 512, 16, ("ddp", "cuda", 8, 64, 1, "bf16"), id="A100-80 x8"),
        pytest.param(machine(*[A100_80] * 8, cores=96), 4096, 16, ("ddp", "cuda", 8, 64, 8, "bf16"), id="A100-80 x8, large"),
        pytest.param(machine(LAPTOP, cores=12, memory=16), 64, 4, ("single", "cuda", 1, 4, 16, "bf16"), id="8 GiB laptop"),
        pytest.param(machine(T4, cores=4, memory=16), 256, 4, ("single", "cuda", 1, 8, 32, "fp16"), id="T4"),
        pytest.param(
            machine(T4, cores=4, memory=16), 240, 4, ("single", "cuda", 1, 12, 20, "fp16"), id="T4, the seed's batch"
        ),
        pytest.param(machine(A100_40), 64, 8, ("single", "cuda", 1, 32, 2, "bf16"), id="A100-40"),
        pytest.param(machine(H100), 256, 8, ("single", "cuda", 1, 64, 4, "bf16"), id="H100"),
        pytest.param(machine(H200, cores=16), 256, 8, ("single", "cuda", 1, 128, 2, "bf16"), id="H200"),
        pytest.param(machine(H200, cores=16), 16, 8, ("single", "cuda", 1, 16, 1, "bf16"), id="H200, small batch"),
        pytest.param(machine(GTX_1060), 16, 2, ("single", "cuda", 1, 2, 8, "fp32"), id="old and small"),
        pytest.param(machine(RTX_4090, RTX_3060), 64, 8, ("ddp", "cuda", 2, 8, 4, "bf16"), id="mixed memory"),
        pytest.param(machine(RTX_4090, T4), 64, 4, ("ddp", "cuda", 2, 8, 4, "fp16"), id="mixed capability"),
        pytest.param(
            machine(RTX_4090, RTX_4090, platform="Windows AMD64"), 32, 8, ("ddp", "cuda", 2, 16, 1, "bf16"), id="Windows"
        ),
        pytest.param(machine(cores=2, memory=16), 16, 8, ("ddp", "cpu", 2, 8, 1, "fp32"), id="CPU 2 cores"),
        pytest.param(machine(cores=1, memory=16), 16, 8, ("single", "cpu", 1, 8, 2, "fp32"), id="CPU 1 core"),
        pytest.param(machine(cores=16, memory=64), 16, 8, ("ddp", "cpu", 2, 8, 1, "fp32"), id="CPU 16 cores, 2 parts"),
        pytest.param(machine(cores=16, memory=64), 128, 8, ("ddp", "cpu", 8, 8, 2, "fp32"), id="CPU 16 cores, 16 parts"),
        pytest.param(machine(cores=6, memory=64), 32, 8, ("ddp", "cpu", 4, 8, 1, "fp32"), id="CPU 6 cores, 4 parts"),
    ],
)
def test_each_machine_gets_its_plan(hardware: Hardware, batch: int, ghost: int, expected: tuple[Any, ...]) -> None:
    made = plan(hardware, TrainSettings(global_batch=batch, ghost_batch=ghost))
    assert layout(made) == expected
    assert made.global_batch == batch


def test_the_global_batch_is_kept_on_every_machine() -> None:
    kinds = [RTX_4090, L4, T4, A100_80, H200, LAPTOP]
    machines = [machine(*[kind] * num) for kind in kinds for num in (1, 2, 3, 5, 8)]
    machines += [machine(cores=cores, memory=memory) for cores in (1, 2, 3, 7, 16, 128) for memory in (4, 64)]
    for hardware, units, ghost in itertools.product(machines, (1, 2, 3, 7, 12, 97), (1, 2, 8, 48)):
        made = plan(hardware, TrainSettings(global_batch=units * ghost, ghost_batch=ghost))
        assert made.ranks * made.micro_batch * made.accumulation == units * ghost
        assert made.micro_batch % ghost == 0
        assert made.ranks <= max(len(hardware.devices), 0 if hardware.devices else hardware.cores)
        assert min(made.threads, made.accumulation) >= 1
        assert made.workers >= 0


@pytest.mark.parametrize("hardware", [machine(RTX_4090, T4), machine(cores=2), machine(cores=16), machine(H200)])
def test_every_choice_has_a_reason(hardware: Hardware) -> None:
    made = plan(hardware, TrainSettings(global_batch=32, ghost_batch=8))
    choices = {one.name for one in dataclasses.fields(Plan)} - {"reasons", "hardware"}
    assert set(made.reasons) == choices
    assert all(made.reasons.values())
    assert made.hardware == hardware.fingerprint


def test_gpus_that_do_not_divide_the_batch_stay_idle_and_the_way_out_is_named() -> None:
    made = plan(machine(*[A100_80] * 8), TrainSettings(global_batch=16, ghost_batch=8))
    assert made.ranks == 2
    assert "2 of 8 GPUs" in made.reasons["ranks"]
    assert "global_batch 64 would use all" in made.reasons["ranks"]


def test_a_ghost_batch_above_the_first_guess_is_used_and_warned_of() -> None:
    made = plan(machine(LAPTOP), TrainSettings(global_batch=64, ghost_batch=16))
    assert made.micro_batch == 16
    assert "lower train.ghost_batch" in made.reasons["micro_batch"]


def test_a_known_size_of_a_sample_replaces_the_table() -> None:
    settings = TrainSettings(global_batch=256, ghost_batch=8)
    assert plan(machine(RTX_4090), settings, example_bytes=64 << 20).micro_batch == 256
    assert plan(machine(RTX_4090), settings, example_bytes=GIB).micro_batch == 16


def test_a_ghost_batch_that_cannot_fit_is_refused_with_the_way_out() -> None:
    with pytest.raises(SlipwayError, match=r"train.ghost_batch to 5 or less"):
        plan(machine(LAPTOP), TrainSettings(global_batch=64, ghost_batch=16), example_bytes=GIB)
    with pytest.raises(SlipwayError, match=r"needs about 17.0 GiB, this machine has 8.0"):
        plan(machine(cores=4, memory=8), TrainSettings(global_batch=64, ghost_batch=16), example_bytes=GIB)


def test_a_gpu_that_others_use_counts_with_what_is_free() -> None:
    busy = dataclasses.replace(machine(RTX_4090).devices[0], free=7 * GIB)
    made = plan(machine(devices=(busy,)), TrainSettings(global_batch=64, ghost_batch=4))
    assert made.micro_batch == 4
    assert "others use the rest" in made.reasons["micro_batch"]


def test_cpu_ranks_must_fit_into_free_memory() -> None:
    settings = TrainSettings(global_batch=64, ghost_batch=8)
    assert plan(machine(cores=8, memory=64), settings).ranks == 8
    assert plan(machine(cores=8, memory=64, free=4), settings).ranks == 2
    tight = plan(machine(cores=8, memory=64, free=1), settings)
    assert tight.ranks == 1
    assert "close other programs" in tight.reasons["ranks"]


def test_threads_and_loaders_share_the_cores_of_a_rank() -> None:
    made = plan(machine(cores=16, memory=64), TrainSettings(global_batch=16, ghost_batch=8))
    assert (made.threads, made.workers) == (6, 2)
    two = plan(machine(cores=2), TrainSettings(global_batch=16, ghost_batch=8))
    assert (two.threads, two.workers) == (1, 0)


@pytest.mark.parametrize(
    ("cores", "num_gpus", "workers"), [(48, 4, 3), (8, 4, 1), (4, 4, 0), (2, 1, 0), (4, 1, 2), (16, 1, 3)]
)
def test_loaders_are_three_a_gpu_while_two_cores_stay_free(cores: int, num_gpus: int, workers: int) -> None:
    made = plan(machine(*[L4] * num_gpus, cores=cores), TrainSettings(global_batch=64, ghost_batch=8))
    assert made.workers == workers
    assert made.threads >= 1


@pytest.mark.parametrize(("free", "prefetch"), [(100, 4), (40, 3), (12, 2)])
def test_prefetch_follows_free_memory(free: int, prefetch: int) -> None:
    assert plan(machine(L4, memory=128, free=free), TrainSettings(global_batch=16)).prefetch == prefetch


@pytest.mark.parametrize(
    ("device", "platform", "group"),
    [
        ("cuda", "Linux x86_64", "nccl"),
        ("cuda", "Windows AMD64", "gloo"),
        ("cpu", "Linux x86_64", "gloo"),
        ("cpu", "Darwin arm64", "gloo"),
    ],
)
def test_the_process_group_suits_the_platform(device: Any, platform: str, group: str) -> None:
    assert process_group(device, platform) == group


def test_windows_is_told_why_it_uses_gloo() -> None:
    made = plan(machine(L4, L4, platform="Windows AMD64"), TrainSettings(global_batch=16, ghost_batch=8))
    assert "gloo (NCCL exists for Linux only)" in made.reasons["backend"]


def test_native_bf16_is_named_where_fp32_is_kept() -> None:
    settings = TrainSettings(global_batch=16, ghost_batch=8)
    assert "native here" in plan(machine(cores=2, bf16_cpu=True), settings).reasons["precision"]
    assert "not native" in plan(machine(cores=2), settings).reasons["precision"]


def test_two_threads_are_as_fast_as_was_measured() -> None:
    assert thread_speed(1) == 1
    assert thread_speed(2) == pytest.approx(1.38, abs=0.01)


def test_the_largest_divisor_is_one_at_least() -> None:
    assert largest_divisor(12, at_most=5) == 4
    assert largest_divisor(7, at_most=6) == 1
    assert largest_divisor(7, at_most=0) == 1
