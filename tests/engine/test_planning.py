"""The plan as a table: what each machine gets, that wishes are honoured or refused, and that the global batch is always kept."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import SlipwayError
from contracts.plan import Device, Hardware, Plan
from contracts.settings import PlanSettings, TrainSettings
from engine import selftest
from engine.planning import (
    Footprint,
    Installed,
    is_cramped,
    largest_divisor,
    meeting,
    micro_batches,
    plan,
    platforms,
    process_group,
    process_group_environment,
    rivals,
    thread_speed,
    unmet,
    with_micro_batch,
)
from engine.planning.cpu import RANK_BYTES

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


TWO = machine(RTX_4090, RTX_4090)
SERVER = machine(*[A100_80] * 8, cores=96)
WINDOWS = machine(RTX_4090, RTX_4090, platform="Windows AMD64")
BATCH = TrainSettings(global_batch=64, ghost_batch=8)


def layout(made: Plan) -> tuple[Any, ...]:
    return (made.backend, made.device, made.ranks, made.micro_batch, made.accumulation, made.precision)


@pytest.mark.parametrize(
    ("hardware", "batch", "ghost", "expected"),
    [
        pytest.param(machine(RTX_4090, RTX_4090), 64, 16, ("ddp", "cuda", 2, 16, 2, "bf16"), id="RTX 4090 x2"),
        pytest.param(machine(*[L4] * 4, cores=48), 256, 16, ("ddp", "cuda", 4, 16, 4, "bf16"), id="L4 x4, 256 a step"),
        pytest.param(machine(*[A100_80] * 8, cores=96), 512, 16, ("ddp", "cuda", 8, 64, 1, "bf16"), id="A100-80 x8"),
        pytest.param(machine(*[A100_80] * 8, cores=96), 4096, 16, ("ddp", "cuda", 8, 64, 8, "bf16"), id="A100-80 x8, large"),
        pytest.param(machine(LAPTOP, cores=12, memory=16), 64, 4, ("single", "cuda", 1, 4, 16, "bf16"), id="8 GiB laptop"),
        pytest.param(machine(T4, cores=4, memory=16), 256, 4, ("single", "cuda", 1, 8, 32, "fp16"), id="T4"),
        pytest.param(machine(T4, cores=4, memory=16), 240, 4, ("single", "cuda", 1, 12, 20, "fp16"), id="T4, 240 a step"),
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
        pytest.param(machine(cores=1, memory=16), 16, 8, ("single", "cpu", 1, 16, 1, "fp32"), id="CPU 1 core"),
        pytest.param(machine(cores=16, memory=64), 16, 8, ("ddp", "cpu", 2, 8, 1, "fp32"), id="CPU 16 cores, 2 parts"),
        pytest.param(machine(cores=16, memory=64), 128, 8, ("ddp", "cpu", 8, 16, 1, "fp32"), id="CPU 16 cores, 16 parts"),
        pytest.param(machine(cores=6, memory=64), 32, 8, ("ddp", "cpu", 4, 8, 1, "fp32"), id="CPU 6 cores, 4 parts"),
        pytest.param(machine(cores=2, memory=16), 128, 1, ("ddp", "cpu", 2, 32, 2, "fp32"), id="CPU, no ghosts"),
        pytest.param(machine(cores=2, memory=16), 72, 3, ("ddp", "cpu", 2, 18, 2, "fp32"), id="CPU, small ghosts"),
        pytest.param(machine(cores=2, memory=16), 6, 1, ("ddp", "cpu", 2, 3, 1, "fp32"), id="CPU, small batch"),
    ],
)
def test_each_machine_gets_its_plan(hardware: Hardware, batch: int, ghost: int, expected: tuple[Any, ...]) -> None:
    made = plan(hardware, TrainSettings(global_batch=batch, ghost_batch=ghost))
    assert layout(made) == expected
    assert made.global_batch == batch
    assert not made.activation_checkpointing, "nothing was measured"


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


@pytest.mark.parametrize("backend", ["single", "dp", "ddp", "fsdp", "deepspeed", "accelerate"])
@pytest.mark.parametrize("hardware", [machine(A100_80, A100_80), machine(cores=4)])
def test_every_choice_has_a_reason_on_every_backend(hardware: Hardware, backend: Any) -> None:
    made = plan(hardware, TrainSettings(global_batch=32, ghost_batch=8), PlanSettings(backend=backend))
    assert made.backend == backend
    assert set(made.reasons) == {one.name for one in dataclasses.fields(Plan)} - {"reasons", "hardware"}
    assert all(made.reasons.values())
    assert made.ranks * made.micro_batch * made.accumulation == 32


def test_gpus_that_do_not_divide_the_batch_stay_idle_and_the_way_out_is_named() -> None:
    made = plan(machine(*[A100_80] * 8), TrainSettings(global_batch=16, ghost_batch=8))
    assert made.ranks == 2
    assert "2 of 8 GPUs" in made.reasons["ranks"]
    assert "global_batch 64 would use all" in made.reasons["ranks"]


def test_on_a_cpu_a_micro_batch_has_as_many_samples_as_fit_in_a_ranks_part_of_the_memory() -> None:
    settings = TrainSettings(global_batch=48, ghost_batch=1)
    assert plan(machine(cores=2, memory=16), settings, footprint=sized(GIB)).micro_batch == 6
    assert plan(machine(cores=2, memory=16), settings, footprint=sized(3 * GIB)).micro_batch == 2


def test_a_ghost_batch_above_the_first_guess_is_used_and_warned_of() -> None:
    made = plan(machine(LAPTOP), TrainSettings(global_batch=64, ghost_batch=16))
    assert made.micro_batch == 16
    assert "lower train.ghost_batch" in made.reasons["micro_batch"]


def sized(sample: int, weights: int = 0) -> Footprint:
    """A model trained by AdamW, without an average."""
    return Footprint(weights=weights, optimizer=2 * weights, validation=weights, sample=sample)


def test_a_known_footprint_replaces_the_table() -> None:
    settings = TrainSettings(global_batch=256, ghost_batch=8)
    assert plan(machine(RTX_4090), settings, footprint=sized(64 << 20)).micro_batch == 256
    assert plan(machine(RTX_4090), settings, footprint=sized(GIB)).micro_batch == 16
    assert plan(machine(RTX_4090), settings, footprint=sized(GIB, weights=2 * GIB)).micro_batch == 8


def test_a_ghost_batch_that_cannot_fit_is_refused_with_the_ways_out() -> None:
    settings = TrainSettings(global_batch=64, ghost_batch=16)
    with pytest.raises(SlipwayError, match=r"plan.activation_checkpointing to true; or .*train.ghost_batch to 7 or less"):
        plan(machine(LAPTOP), settings, footprint=sized(GIB))
    with pytest.raises(SlipwayError, match=r"needs about 17.0 GiB, this machine has 8.0"):
        plan(machine(cores=4, memory=8), settings, footprint=sized(GIB))


# A model of a quarter GiB of whose samples each holds 3 GiB of activations, or half a GiB where they are computed twice.
HEAVY_BUT_FOR_RECOMPUTING = dataclasses.replace(
    sized(3 * GIB, weights=GIB // 4), recomputed=sized(GIB // 2, weights=GIB // 4)
)
GPUS_4090, GPUS_L4 = machine(RTX_4090, RTX_4090), machine(*[L4] * 4, cores=48)
GPUS_A100, GPU_LAPTOP = machine(*[A100_80] * 8, cores=96), machine(LAPTOP, cores=12, memory=16)


@pytest.mark.parametrize(
    ("hardware", "ghost", "expected", "words"),
    [
        pytest.param(GPUS_4090, 4, ("ddp", 2, 4, 8, False), "kept", id="RTX 4090 x2"),
        pytest.param(
            GPUS_4090, 8, ("ddp", 2, 32, 1, True), "a ghost batch of 8 samples fits", id="RTX 4090 x2, ghosts of 8"
        ),
        pytest.param(GPUS_L4, 1, ("ddp", 4, 4, 4, False), "kept", id="L4 x4"),
        pytest.param(GPUS_L4, 8, ("ddp", 4, 16, 1, True), "a ghost batch of 8 samples fits", id="L4 x4, ghosts of 8"),
        pytest.param(GPUS_A100, 8, ("ddp", 8, 8, 1, False), "kept", id="A100-80 x8"),
        pytest.param(GPU_LAPTOP, 1, ("single", 1, 8, 8, True), "1 sample at once would fit, and so 8", id="8 GiB laptop"),
        pytest.param(machine(cores=2, memory=16), 4, ("single", 1, 4, 16, False), "kept", id="CPU"),
        pytest.param(machine(cores=2, memory=12), 4, ("ddp", 2, 4, 8, True), "a ghost batch of 4 samples", id="small CPU"),
    ],
)
def test_activations_are_computed_twice_where_too_few_samples_fit_otherwise(
    hardware: Hardware, ghost: int, expected: tuple[Any, ...], words: str
) -> None:
    settings = TrainSettings(global_batch=64, ghost_batch=ghost)
    made = plan(hardware, settings, footprint=HEAVY_BUT_FOR_RECOMPUTING)
    assert (made.backend, made.ranks, made.micro_batch, made.accumulation, made.activation_checkpointing) == expected
    assert words in made.reasons["activation_checkpointing"]
    assert unmet(made, PlanSettings()) is None


def test_a_wish_about_activations_is_honoured_whatever_fits() -> None:
    settings = TrainSettings(global_batch=64, ghost_batch=8)
    for wish, fits in ((True, HEAVY_BUT_FOR_RECOMPUTING.recomputed), (False, sized(GIB // 2))):
        made = plan(GPUS_4090, settings, PlanSettings(activation_checkpointing=wish), footprint=fits)
        assert made.activation_checkpointing is wish
        assert made.reasons["activation_checkpointing"].startswith("as plan.activation_checkpointing says")
        assert unmet(made, PlanSettings(activation_checkpointing=not wish)) == f"activation_checkpointing {not wish}"
    with pytest.raises(SlipwayError, match=r"set plan.activation_checkpointing to true; or"):
        plan(GPUS_4090, settings, PlanSettings(activation_checkpointing=False), footprint=HEAVY_BUT_FOR_RECOMPUTING)


def test_what_does_not_fit_with_activations_computed_twice_either_is_refused() -> None:
    size = dataclasses.replace(sized(GIB), recomputed=sized(GIB - 1))
    with pytest.raises(
        SlipwayError, match=r"at 1.00 GiB each do not fit with single, activations computed twice: "
    ) as refused:
        plan(GPU_LAPTOP, TrainSettings(global_batch=64, ghost_batch=16), footprint=size)
    assert "plan.activation_checkpointing" not in str(refused.value)


def test_few_samples_at_once_are_no_reason_to_compute_twice_where_no_more_fit_so() -> None:
    size = dataclasses.replace(sized(3 * GIB), recomputed=sized(2 * GIB + GIB // 2))
    assert not plan(GPU_LAPTOP, TrainSettings(global_batch=64), footprint=size).activation_checkpointing


def test_a_small_global_batch_is_no_want_of_memory() -> None:
    alone, divided = (
        plan(machine(*[RTX_4090] * num), TrainSettings(global_batch=8), footprint=sized(8 * GIB)) for num in (1, 4)
    )
    assert divided.micro_batch == alone.micro_batch == 2
    assert is_cramped(alone) and not is_cramped(divided)


def test_a_model_that_fits_only_in_pieces_is_sharded() -> None:
    settings = TrainSettings(global_batch=64, ghost_batch=4)
    made = plan(machine(*[RTX_4090] * 4), settings, footprint=sized(GIB // 4, weights=5 * GIB))
    assert (made.backend, made.ranks) == ("fsdp", 4)
    assert "need 31.0 GiB, divided among 4 ranks 11.0" in made.reasons["backend"]
    assert plan(machine(*[A100_80] * 4), settings, footprint=sized(GIB // 4, weights=5 * GIB)).backend == "ddp"
    old = plan(machine(*[T4] * 4), settings, footprint=sized(GIB // 4, weights=3 * GIB))
    assert (old.backend, old.precision) == ("fsdp", "fp32"), old.reasons["precision"]


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


def test_the_memory_in_which_cpu_ranks_exchange_gradients_is_counted() -> None:
    """A message of each of the two and their sum: three times the weights."""
    settings, model = TrainSettings(global_batch=16, ghost_batch=8), sized(GIB // 16, weights=GIB)
    two = 2 * (RANK_BYTES + model.needed(8, "ddp", ranks=2)) // GIB
    assert plan(machine(cores=2, memory=64, free=two + 3), settings, footprint=model).ranks == 2
    assert plan(machine(cores=2, memory=64, free=two + 2), settings, footprint=model).ranks == 1


def test_loaders_are_left_out_where_the_ranks_need_the_memory() -> None:
    settings, model = TrainSettings(global_batch=16, ghost_batch=8), sized(GIB // 16, weights=GIB)
    two = 2 * (RANK_BYTES + model.needed(8, "ddp", ranks=2)) // GIB + 3
    assert plan(machine(cores=16, memory=64, free=two), settings, footprint=model).workers == 0
    assert plan(machine(cores=16, memory=64, free=two + 2), settings, footprint=model).workers == 2


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
    kept = plan(machine(cores=2, bf16_cpu=True), settings).reasons["precision"]
    assert "native here and may be faster: `slipway plan --measure` tries it" in kept
    assert "not native" in plan(machine(cores=2), settings).reasons["precision"]


def test_two_threads_are_as_fast_as_was_measured() -> None:
    assert thread_speed(1) == 1
    assert thread_speed(2) == pytest.approx(1.38, abs=0.01)


def test_the_largest_divisor_is_one_at_least() -> None:
    assert largest_divisor(12, at_most=5) == 4
    assert largest_divisor(7, at_most=6) == 1
    assert largest_divisor(7, at_most=0) == 1


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({"backend": "single"}, {"backend": "single", "ranks": 1, "accumulation": 4}),
        ({"backend": "dp"}, {"backend": "dp", "ranks": 1, "replicas": 2, "micro_batch": 16, "accumulation": 4}),
        ({"backend": "accelerate"}, {"backend": "accelerate", "ranks": 2}),
        ({"ranks": 1}, {"backend": "single", "ranks": 1}),
        ({"micro_batch": 32}, {"micro_batch": 32, "ranks": 2, "accumulation": 1}),
        ({"micro_batch": 64}, {"micro_batch": 64, "ranks": 1, "accumulation": 1}),
        ({"precision": "fp32"}, {"precision": "fp32"}),
        ({"offload": "optimizer"}, {"backend": "fsdp", "offload": "optimizer"}),
        ({"backend": "deepspeed", "zero_stage": 3, "offload": "parameters"}, {"zero_stage": 3, "offload": "parameters"}),
        ({"compress_gradients": True}, {"compress_gradients": True}),
        ({"compress_gradients": True, "ranks": 1}, {"compress_gradients": False}),
        ({"activation_checkpointing": True, "compile": True}, {"activation_checkpointing": True, "compile": True}),
        ({"restarts": 0, "hang_seconds": 9}, {"restarts": 0, "hang_seconds": 9}),
    ],
)
def test_wishes_are_honoured(wishes: dict[str, Any], expected: dict[str, Any]) -> None:
    made = plan(TWO, BATCH, PlanSettings(**wishes))
    assert {name: getattr(made, name) for name in expected} == expected
    assert made.global_batch == 64


@pytest.mark.parametrize(("hardware", "costs"), [(TWO, True), (machine(cores=2), True), (machine(RTX_4090), False)])
def test_dp_says_what_it_costs_when_it_is_asked_for_too(hardware: Hardware, costs: bool) -> None:
    assert ("slower than ranks" in plan(hardware, BATCH, PlanSettings(backend="dp")).reasons["backend"]) == costs


def test_a_wish_that_does_nothing_is_said() -> None:
    made = plan(TWO, BATCH, PlanSettings(compress_gradients=True, ranks=1))
    assert "nothing to compress" in made.reasons["compress_gradients"]


NO_COMPILER, NO_DEEPSPEED = Installed(compiler=False), Installed(deepspeed=False)
NO_PROCESS_GROUP, NO_RANKS = Installed(distributed=False), Installed(libuv=False, ranks_start=False)


@pytest.mark.parametrize(
    ("hardware", "wishes", "installed", "words"),
    [
        (TWO, {"ranks": 4}, Installed(), "plan.ranks = 4 cannot be: this machine has 2 GPUs: use 1 or 2"),
        (machine(cores=2), {"ranks": 4}, Installed(), "this machine has 2 cores: use 1 or 2"),
        (
            SERVER,
            {"ranks": 3},
            Installed(),
            "which 3 ranks cannot share equally: use 1 or 2 or 4 or 8, or train.global_batch 72",
        ),
        (TWO, {"backend": "single", "ranks": 2}, Installed(), "plan.backend = single is one rank"),
        (TWO, {"micro_batch": 12}, Installed(), "must be a multiple of train.ghost_batch = 8: 8, for one"),
        (TWO, {"micro_batch": 24}, Installed(), "does not divide the global batch of 64: use 8 or 16 or 32 or 64"),
        (
            TWO,
            {"micro_batch": 64, "ranks": 2},
            Installed(),
            "each rank's 32 samples of global batch of 64: use 8 or 16 or 32",
        ),
        (machine(cores=2), {"precision": "fp16"}, Installed(), "fp16 needs a GPU: use bf16 or fp32"),
        (
            TWO,
            {"precision": "fp16", "backend": "fsdp"},
            Installed(),
            "not supported with fsdp: use bf16, or plan.backend ddp",
        ),
        (TWO, {"precision": "fp16", "backend": "deepspeed"}, Installed(), "not supported with deepspeed: use bf16"),
        (TWO, {"precision": "fp16", "offload": "optimizer"}, Installed(), "not supported with fsdp: use bf16"),
        (WINDOWS, {"backend": "deepspeed"}, Installed(), "DeepSpeed is for Linux, this is Windows: use auto or ddp"),
        (WINDOWS, {"backend": "fsdp"}, Installed(), "FSDP is not for Windows: use auto, dp or ddp"),
        (
            WINDOWS,
            {"offload": "optimizer"},
            Installed(),
            "plan.offload = optimizer cannot be: FSDP is not for Windows: leave it out",
        ),
        (TWO, {"backend": "deepspeed"}, NO_DEEPSPEED, "DeepSpeed is not installed: `pip install deepspeed`, or use fsdp"),
        (TWO, {"zero_stage": 3}, Installed(), "it is DeepSpeed's, and plan.backend is auto: set that to deepspeed"),
        (TWO, {"offload": "parameters", "backend": "deepspeed"}, Installed(), "set plan.zero_stage to 3"),
        (
            TWO,
            {"offload": "optimizer", "backend": "ddp"},
            Installed(),
            "only fsdp and deepspeed can, and plan.backend is ddp",
        ),
        (TWO, {"compress_gradients": True, "backend": "fsdp"}, Installed(), "only ddp and accelerate can"),
        (TWO, {"compile": True, "backend": "dp"}, Installed(), "cannot be compiled: set plan.backend to ddp"),
        (TWO, {"compile": True}, NO_COMPILER, "torch.compile needs Triton (GPU) or a C++ compiler"),
        (TWO, {"backend": "ddp"}, NO_PROCESS_GROUP, "built without torch.distributed: use auto, single or dp"),
        (WINDOWS, {"backend": "accelerate"}, NO_RANKS, "ranks cannot find each other here"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_with_the_way_out(
    hardware: Hardware, wishes: dict[str, Any], installed: Installed, words: str
) -> None:
    with pytest.raises(SlipwayError) as refused:
        plan(hardware, BATCH, PlanSettings(**wishes), installed=installed)
    assert words in str(refused.value)
    assert str(refused.value).startswith("plan.")


def test_what_is_slow_is_warned_of_and_done() -> None:
    made = plan(machine(T4), BATCH, PlanSettings(precision="bf16"))
    assert (made.precision, "warning: Tesla T4 has compute capability 7.5" in made.reasons["precision"]) == ("bf16", True)
    slow = plan(machine(cores=2), BATCH, PlanSettings(precision="bf16"))
    assert "warning: bf16 is not native" in slow.reasons["precision"]


def accelerate_config(folder: Path, **changes: Any) -> PlanSettings:
    """Wishes with a file as `accelerate config` writes it."""
    written = {
        "compute_environment": "LOCAL_MACHINE", "debug": False, "distributed_type": "MULTI_GPU", "downcast_bf16": "no",
        "enable_cpu_affinity": False, "gpu_ids": "all", "machine_rank": 0, "main_training_function": "main",
        "mixed_precision": "bf16", "num_machines": 1, "num_processes": 2, "rdzv_backend": "static", "same_network": True,
        "tpu_env": [], "tpu_use_cluster": False, "tpu_use_sudo": False, "use_cpu": False,
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(json.dumps({**written, **changes}))
    return PlanSettings(accelerate_config=str(path))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("accelerate", "cuda", 2, 16, 2, "bf16")),
        ({"distributed_type": "NO", "num_processes": 1}, ("accelerate", "cuda", 1, 16, 4, "bf16")),
        ({"distributed_type": "MULTI_CPU", "mixed_precision": "no"}, ("accelerate", "cpu", 2, 32, 1, "fp32")),
        ({"use_cpu": True, "mixed_precision": "no"}, ("accelerate", "cpu", 2, 32, 1, "fp32")),
        ({"num_processes": None}, ("accelerate", "cuda", 2, 16, 2, "bf16")),
        ({"num_processes": None, "num_machines": None, "distributed_type": "NO"}, ("accelerate", "cuda", 1, 16, 4, "bf16")),
        ({"mixed_precision": "fp16"}, ("accelerate", "cuda", 2, 16, 2, "fp16")),
    ],
)
def test_a_file_of_accelerate_config_is_honoured(tmp_path: Path, changes: dict[str, Any], expected: tuple[Any, ...]) -> None:
    made = plan(TWO, BATCH, accelerate_config(tmp_path, **changes))
    assert layout(made) == expected
    assert "config.yaml: " in made.reasons["backend"]
    assert (made.device == "cpu") == ("leaves the GPUs alone" in made.reasons["device"])
    assert made.hardware == TWO.fingerprint


def test_a_file_for_gpus_starts_ranks_that_meet_where_there_are_none(tmp_path: Path) -> None:
    made = plan(machine(cores=2, memory=24), BATCH, accelerate_config(tmp_path, mixed_precision="no"))
    assert layout(made) == ("accelerate", "cpu", 2, 32, 1, "fp32")
    assert "gloo" in made.reasons["backend"] and "no GPU" in made.reasons["device"]


def test_accelerates_compiler_is_taken_over(tmp_path: Path) -> None:
    for name, compiled in (("INDUCTOR", True), ("no", False), (False, False)):  # YAML reads a bare NO as false
        made = plan(TWO, BATCH, accelerate_config(tmp_path, dynamo_config={"dynamo_backend": name}))
        assert made.compile is compiled


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *[({"distributed_type": kind}, f"its distributed_type is {kind}. Slipway has these") for kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA")],
        ({"num_machines": 2}, "it is for 2 machines"),
        ({"num_machines": "2"}, "its num_machines is '2': a number is wanted"),
        ({"num_processes": "auto"}, "its num_processes is 'auto': a number is wanted; plan.ranks is auto where it is null"),
        ({"mixed_precision": "fp8"}, "its mixed_precision is fp8: no, bf16 or fp16"),
        ({"gpu_ids": "1,2"}, "set them in CUDA_VISIBLE_DEVICES"),
        ({"dynamo_config": {"dynamo_backend": "CUDAGRAPHS"}}, "its dynamo_backend is CUDAGRAPHS: INDUCTOR or NO"),
        ({"num_processes": 0}, "its num_processes is 0: a number is wanted"),
        ({"num_processes": 3}, "plan.ranks = 3 cannot be: this machine has 2 GPUs"),
    ],
)  # fmt: skip
def test_what_accelerate_would_do_otherwise_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SlipwayError) as refused:
        plan(TWO, BATCH, accelerate_config(tmp_path, **changes))
    assert words in str(refused.value)


def test_a_file_without_a_number_of_processes_leaves_it_to_plan_ranks(tmp_path: Path) -> None:
    wishes = accelerate_config(tmp_path, num_processes=None).model_copy(update={"ranks": 4})
    assert plan(SERVER, BATCH, wishes).ranks == 4
    made = plan(SERVER, BATCH, wishes.model_copy(update={"ranks": None}))
    assert made.ranks == 8
    assert "num_processes auto" in made.reasons["backend"]


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"backend": "ddp"}, "plan.backend is ddp: set it to accelerate or auto"),
        ({"ranks": 1}, "says 2: leave one of them out"),
        ({"precision": "fp32"}, "says bf16: leave one of them out"),
    ],
)
def test_wishes_that_contradict_the_file_are_refused(tmp_path: Path, wishes: dict[str, Any], words: str) -> None:
    with pytest.raises(SlipwayError) as refused:
        plan(TWO, BATCH, accelerate_config(tmp_path).model_copy(update=wishes))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"), [(None, "cannot be read"), ("a: [", "not valid YAML"), ("", "holds no settings")]
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(SlipwayError, match=words):
        plan(TWO, BATCH, PlanSettings(accelerate_config=str(tmp_path / "config.yaml")))


@pytest.mark.parametrize(
    ("device", "platform", "installed", "group", "words"),
    [
        ("cuda", "Linux x86_64", Installed(), "nccl", "nccl"),
        ("cpu", "Linux x86_64", Installed(), "gloo", "gloo"),
        ("cpu", "Darwin arm64", Installed(), "gloo", "gloo"),
        ("cuda", "Windows AMD64", Installed(), "gloo", "NCCL exists for Linux only"),
        (
            "cuda",
            "Windows AMD64",
            Installed(libuv=False, ranks_start=True),
            "gloo",
            "through a file, as this torch is built",
        ),
        ("cpu", "Windows AMD64", Installed(libuv=False, ranks_start=True), "gloo", "through a file, as this torch is built"),
        ("cuda", "Windows AMD64", NO_RANKS, None, "did not find each other when it was tried"),
        ("cpu", "Windows AMD64", NO_RANKS, None, "did not find each other when it was tried"),
        ("cuda", "Linux x86_64", Installed(ranks_start=False), None, "`slipway doctor` says more"),
        ("cpu", "Darwin arm64", NO_PROCESS_GROUP, None, "built without torch.distributed"),
    ],
)
def test_ranks_meet_as_the_platform_lets_them(
    device: Any, platform: str, installed: Installed, group: str | None, words: str
) -> None:
    met = meeting(device, platform, installed)
    assert met.group == group
    assert words in met.reason


@pytest.mark.parametrize(
    ("hardware", "installed", "expected"),
    [
        (WINDOWS, Installed(libuv=False, ranks_start=True), ("ddp", 2, 1)),
        (WINDOWS, NO_RANKS, ("dp", 1, 2)),
        (TWO, NO_PROCESS_GROUP, ("dp", 1, 2)),
        (machine(RTX_4090, platform="Windows AMD64"), NO_RANKS, ("single", 1, 1)),
        (machine(cores=8, platform="Windows AMD64"), NO_RANKS, ("single", 1, 1)),
        (machine(cores=8, platform="Windows AMD64"), Installed(libuv=False, ranks_start=True), ("ddp", 8, 1)),
        (machine(cores=8, platform="Darwin arm64"), NO_PROCESS_GROUP, ("single", 1, 1)),
        (machine(cores=8, platform="Darwin arm64"), Installed(), ("ddp", 8, 1)),
    ],
)
def test_where_ranks_cannot_meet_one_process_does_the_work_and_says_why(
    hardware: Hardware, installed: Installed, expected: tuple[Any, ...]
) -> None:
    made = plan(hardware, BATCH, installed=installed)
    assert (made.backend, made.ranks, made.replicas) == expected
    assert meeting(made.device, hardware.platform, installed).reason in made.reasons["backend"] or expected[0] == "single"
    assert made.global_batch == 64


def test_a_torch_without_libuv_is_told_not_to_ask_for_it() -> None:
    assert process_group_environment(libuv=False)["USE_LIBUV"] == "0"
    assert "USE_LIBUV" not in process_group_environment(libuv=True)


# Found by every Python that starts below: torch's store as the wheels for Windows have it.
WITHOUT_LIBUV = """
import sys
if any(word in ("torch.distributed.run", "engine.selftest") for word in sys.orig_argv):
    import torch.distributed
    store = torch.distributed.TCPStore
    class WithoutLibuv(store):
        def __init__(self, *arguments, use_libuv=True, **options):
            if use_libuv:
                raise torch.distributed.DistStoreError("use_libuv was requested but PyTorch was built without libuv support")
            super().__init__(*arguments, use_libuv=False, **options)
    for module in list(sys.modules.values()):
        if getattr(module, "TCPStore", None) is store:
            module.TCPStore = WithoutLibuv
"""


@pytest.mark.slow
@pytest.mark.parametrize(("told", "starts"), [(False, True), (True, False)])
def test_on_windows_ranks_are_tried_and_find_each_other_through_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool, starts: bool
) -> None:
    """Where torch has no libuv; told that it has, they do not, and one process does the work."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_LIBUV)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for module in (platforms, selftest):
        monkeypatch.setattr(module, "has_libuv", lambda: told)
    monkeypatch.setattr(platforms, "_ranks_start", platforms._ranks_start.__wrapped__)
    windows = machine(cores=2, platform="Windows AMD64")
    found = platforms.look_around(windows)
    assert found.ranks_start is starts
    assert plan(windows, BATCH, installed=found).backend == ("ddp" if starts else "single")


# Batch a GPU and accumulation by memory, as users know them for 256 samples a step (240 on T4) on 4 GPUs.
WELL_KNOWN = [
    (L4, 256, 16, 4),
    (T4, 240, 12, 5),
    (RTX_3060, 256, 8, 8),
    (LAPTOP, 256, 4, 16),
    (("small", 5120, (8, 6)), 256, 2, 32),
]


@pytest.mark.parametrize(("gpu", "batch", "micro_batch", "accumulation"), WELL_KNOWN)
def test_the_well_known_table_comes_out_where_nothing_is_measured(
    gpu: Any, batch: int, micro_batch: int, accumulation: int
) -> None:
    made = plan(machine(*[gpu] * 4, cores=48, memory=128), TrainSettings(global_batch=batch, ghost_batch=1))
    assert (made.ranks, made.micro_batch, made.accumulation) == (4, micro_batch, accumulation)
    assert made.workers * made.ranks == 12


def test_rivals_differ_in_what_is_left_open() -> None:
    made, refused = rivals(machine(cores=2, bf16_cpu=True), TrainSettings(global_batch=16, ghost_batch=8))
    backends = ["single", "ddp", "accelerate", "fsdp", "deepspeed"]
    assert [(one.backend, one.precision) for one in made] == [(name, kind) for name in backends for kind in ("fp32", "bf16")]
    assert (made[0].threads, made[0].ranks, made[2].ranks) == (2, 1, 2)
    assert set(refused) == {"dp"}
    made, _ = rivals(machine(RTX_4090), BATCH)
    assert [(one.backend, one.precision, one.compile) for one in made] == [
        ("single", kind, compiled) for kind in ("fp32", "bf16") for compiled in (False, True)
    ]
    made, _ = rivals(TWO, BATCH, PlanSettings(backend="ddp", precision="bf16", compile=True))
    assert [(one.backend, one.precision, one.compile) for one in made] == [("ddp", "bf16", True)]
    made, refused = rivals(WINDOWS, BATCH, installed=Installed(ranks_start=False, compiler=False))
    assert {one.backend for one in made} == {"single", "dp"}
    assert "ranks cannot find each other" in refused["ddp"]


def test_a_plan_made_for_other_wishes_is_told_apart() -> None:
    made = plan(TWO, BATCH)
    assert unmet(made, PlanSettings()) is None
    assert unmet(made, PlanSettings(backend="fsdp")) == "backend fsdp"
    assert unmet(made, PlanSettings(restarts=0)) == "restarts 0"
    assert unmet(dataclasses.replace(made, compile=True), PlanSettings()) is None
    assert unmet(plan(TWO, BATCH, PlanSettings(backend="dp", ranks=2)), PlanSettings(backend="dp", ranks=2)) is None


def test_micro_batches_are_whole_ghost_batches_that_divide_a_ranks_share() -> None:
    assert micro_batches(TrainSettings(global_batch=96, ghost_batch=8), ranks=2) == (8, 16, 24, 48)
    made = with_micro_batch(plan(TWO, BATCH), 8)
    assert (made.micro_batch, made.accumulation, made.global_batch) == (8, 4, 64)
