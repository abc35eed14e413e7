"""How a global batch is divided on a machine: a pure function from hardware and settings to a plan with a reason for every line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from contracts.errors import SlipwayError
from contracts.plan import Device, Hardware, Plan, Precision
from contracts.settings import TrainSettings

GIB = 1 << 30
# Samples a micro-batch by the memory of the smallest GPU in nominal GiB: a first guess, which measuring may better.
FIRST_GUESS = ((140, 128), (80, 64), (40, 32), (20, 16), (14, 12), (10, 8), (6, 4), (0, 2))
# A card sold with 20 GB reports between 19.0 and 20.0 GiB, according to who is asked.
NOMINAL = 0.95
# Below this free part somebody else is using the GPU, and only what is free counts.
SHARED = 0.6
# The part of a GPU's memory that samples may fill where their size is known; weights and optimiser need the rest.
FILL = 0.7

MAX_CPU_RANKS = 8
# Part of a training step on the CPU that threads share: 2 threads ran 1.38 times as fast as 1 (Amdahl's law, solved).
PARALLEL = 0.55
# What a process costs before its first sample (torch and its libraries), and what a sample costs, measured roughly.
RANK_BYTES, CPU_EXAMPLE_BYTES, WORKER_BYTES = GIB, 64 << 20, GIB // 3

WORKERS_PER_RANK, SPARE_CORES = 3, 2
PREFETCH_BY_FREE_MEMORY = ((64, 4), (32, 3), (0, 2))


def plan(hardware: Hardware, settings: TrainSettings, *, example_bytes: int | None = None) -> Plan:
    """The layout of one training run: ranks x micro_batch x accumulation is exactly the global batch.

    A micro-batch is a whole number of ghost batches, so that batch statistics do not depend on the layout. `example_bytes`
    is the memory that one sample takes in training, where somebody knows; it replaces the table of first guesses.

    Raises:
        SlipwayError: when one ghost batch cannot fit; the text says what to change.
    """
    return _on_gpus(hardware, settings, example_bytes) if hardware.devices else _on_cpu(hardware, settings, example_bytes)


def process_group(device: Literal["cuda", "cpu"], platform: str) -> Literal["nccl", "gloo"]:
    """The library that carries tensors between ranks; `platform` as in Hardware ("Windows AMD64")."""
    return "nccl" if device == "cuda" and platform.startswith("Linux") else "gloo"


def largest_divisor(number: int, *, at_most: int) -> int:
    """The largest divisor of `number` that is not above `at_most` (1 at least)."""
    return next(one for one in range(max(1, min(at_most, number)), 0, -1) if number % one == 0)


def smaller(plan: Plan, *, ghost_batch: int) -> Plan | None:
    """The same global batch in smaller micro-batches: half of each, or the nearest that divides; None where it is one ghost batch."""
    ghosts = plan.micro_batch // ghost_batch
    if ghosts <= 1:
        return None
    fewer = largest_divisor(ghosts * plan.accumulation, at_most=ghosts // 2)
    return replace(plan, micro_batch=fewer * ghost_batch, accumulation=ghosts * plan.accumulation // fewer)


def _on_gpus(hardware: Hardware, settings: TrainSettings, example_bytes: int | None) -> Plan:
    units = settings.global_batch // settings.ghost_batch
    ranks = largest_divisor(units, at_most=len(hardware.devices))
    used = hardware.devices[:ranks]
    limit, guess = _guess(used, settings, example_bytes)
    factor = largest_divisor(units // ranks, at_most=limit // settings.ghost_batch)
    micro_batch, accumulation = factor * settings.ghost_batch, units // ranks // factor
    workers = max(0, min(WORKERS_PER_RANK, (hardware.cores - SPARE_CORES) // ranks))
    threads = max(1, hardware.cores // ranks - workers)
    precision, precision_reason = _gpu_precision(used)
    prefetch = _prefetch(hardware)
    group = process_group("cuda", hardware.platform)
    return Plan(
        backend="ddp" if ranks > 1 else "single",
        device="cuda",
        ranks=ranks,
        micro_batch=micro_batch,
        accumulation=accumulation,
        threads=threads,
        workers=workers,
        prefetch=prefetch,
        precision=precision,
        hardware=hardware.fingerprint,
        reasons={
            "backend": _backend_reason(ranks, group, hardware.platform),
            "device": _device_reason(used),
            "ranks": _gpu_ranks_reason(len(hardware.devices), ranks, settings),
            "micro_batch": _micro_batch_reason(micro_batch, limit, guess, settings),
            "accumulation": _accumulation_reason(ranks, micro_batch, accumulation),
            "threads": f"{_count(hardware.cores, 'core')} for {_count(ranks, 'rank')}, less {workers} loading in each (1 at least)",
            "workers": f"{WORKERS_PER_RANK} a GPU, as long as {SPARE_CORES} of the {hardware.cores} cores stay free;"
            f" {workers * ranks} in all",
            "prefetch": _prefetch_reason(hardware, prefetch, workers),
            "precision": precision_reason,
        },
    )


def _guess(used: Sequence[Device], settings: TrainSettings, example_bytes: int | None) -> tuple[int, str]:
    """The largest micro-batch, in samples, that the smallest GPU should hold, and where the number comes from."""
    smallest = min(used, key=_usable_memory)
    memory = _usable_memory(smallest)
    where = f"{smallest.name} has {memory / GIB:.1f} GiB" + (
        "" if memory == smallest.memory else " free (others use the rest)"
    )
    if len({one.name for one in used}) > 1:
        where = f"the smallest GPU decides: {where}"
    if example_bytes is None:
        return next(guess for size, guess in FIRST_GUESS if memory >= size * NOMINAL * GIB), f"{where}, first guess"
    limit = int(FILL * memory / example_bytes)
    if limit < settings.ghost_batch:
        raise SlipwayError(
            f"a ghost batch of {settings.ghost_batch} samples at {example_bytes / GIB:.2f} GiB each does not fit: {where}."
            f" Set train.ghost_batch to {max(1, limit)} or less, or make the samples smaller (train.image_size, for one)"
        )
    return limit, f"{where}, a sample takes {example_bytes / GIB:.2f}"


def _usable_memory(device: Device) -> int:
    return device.free if device.free < SHARED * device.memory else device.memory


def _gpu_precision(used: Sequence[Device]) -> tuple[Precision, str]:
    lowest = min(used, key=lambda one: one.capability)
    name = f"{lowest.name} has compute capability {'.'.join(map(str, lowest.capability))}"
    if lowest.capability >= (8, 0):
        return "bf16", f"{name}: bf16 is native from 8.0 and needs no loss scaling"
    if lowest.capability >= (7, 0):
        return ("fp16", f"{name}: fp16 with loss scaling from 7.0; bf16 is native from 8.0 only")
    return "fp32", f"{name}: half precision is slower than fp32 below 7.0"


def _on_cpu(hardware: Hardware, settings: TrainSettings, example_bytes: int | None) -> Plan:
    units = settings.global_batch // settings.ghost_batch
    sample = example_bytes or CPU_EXAMPLE_BYTES
    need = RANK_BYTES + settings.ghost_batch * sample
    if need > hardware.memory:
        raise SlipwayError(
            f"one rank with a ghost batch of {settings.ghost_batch} samples needs about {need / GIB:.1f} GiB, this machine has"
            f" {hardware.memory / GIB:.1f}. Lower train.ghost_batch, make the samples smaller, or give the container more memory"
        )
    ranks = _cpu_ranks(hardware, units, need)
    share = hardware.cores // ranks
    workers = (
        0 if share <= 2 else min(WORKERS_PER_RANK, share // 4, max(0, hardware.free_memory // ranks - need) // WORKER_BYTES)
    )
    threads, prefetch = max(1, share - workers), _prefetch(hardware)
    gain = ranks * thread_speed(threads)
    short = f"; only {hardware.free_memory / GIB:.1f} GiB are free: close other programs"
    return Plan(
        backend="ddp" if ranks > 1 else "single",
        device="cpu",
        ranks=ranks,
        micro_batch=settings.ghost_batch,
        accumulation=units // ranks,
        threads=threads,
        workers=workers,
        prefetch=prefetch,
        precision="fp32",
        hardware=hardware.fingerprint,
        reasons={
            "backend": _backend_reason(ranks, "gloo", hardware.platform),
            "device": "no GPU that torch can use was found",
            "ranks": f"ranks share work better than threads (2 threads: {thread_speed(2):.2f} times the speed); {ranks} with"
            f" {_count(threads, 'thread')} each should do the work of {gain:.1f} cores, divide the {_count(units, 'ghost batch')} of a"
            f" step and need {need / GIB:.1f} GiB each" + (short if need > hardware.free_memory else ""),
            "micro_batch": f"one ghost batch of {settings.ghost_batch} samples: larger ones gain nothing on a CPU and need memory",
            "accumulation": _accumulation_reason(ranks, settings.ghost_batch, units // ranks),
            "threads": f"{_count(hardware.cores, 'core')} for {_count(ranks, 'rank')}"
            + (f", less {workers} loading" if workers else ""),
            "workers": f"a quarter of the rank's {share} cores, {WORKERS_PER_RANK} at most"
            if workers
            else f"{_count(share, 'core')} a rank: loading in the rank itself costs least",
            "prefetch": _prefetch_reason(hardware, prefetch, workers),
            "precision": "bf16 is native here, but was measured no faster than fp32 in channels-last order"
            if hardware.bf16_cpu
            else "bf16 is not native on this processor and would be slower",
        },
    )


def _cpu_ranks(hardware: Hardware, units: int, need: int) -> int:
    """The number of ranks that promises the most work a second; of equals the fewest. Each holds `need` bytes."""
    most = max(1, min(hardware.cores, MAX_CPU_RANKS, hardware.free_memory // need))
    candidates = [ranks for ranks in range(1, most + 1) if units % ranks == 0]
    return max(candidates, key=lambda ranks: (round(ranks * thread_speed(hardware.cores // ranks), 6), -ranks))


def thread_speed(threads: int) -> float:
    """How many times as fast as one thread a rank trains with `threads` of them, on a CPU."""
    return 1 / ((1 - PARALLEL) + PARALLEL / threads)


def _prefetch(hardware: Hardware) -> int:
    return next(batches for size, batches in PREFETCH_BY_FREE_MEMORY if hardware.free_memory >= size * GIB)


def _prefetch_reason(hardware: Hardware, prefetch: int, workers: int) -> str:
    if not workers:
        return "not used: there are no loader processes"
    return f"{prefetch} batches ahead for each loader process, as {hardware.free_memory / GIB:.0f} GiB of memory are free"


def _backend_reason(ranks: int, group: str, platform: str) -> str:
    if ranks == 1:
        return "one device and one rank: nothing to exchange"
    why = " (NCCL exists for Linux only)" if group == "gloo" and platform.startswith("Windows") else ""
    return f"{ranks} ranks average their gradients through {group}{why}"


def _device_reason(used: Sequence[Device]) -> str:
    names = [one.name for one in used]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _gpu_ranks_reason(num_devices: int, ranks: int, settings: TrainSettings) -> str:
    if ranks == num_devices:
        return f"all {num_devices} GPUs" if num_devices > 1 else "the only GPU"
    units = settings.global_batch // settings.ghost_batch
    step = settings.ghost_batch * num_devices
    above = -(-settings.global_batch // step) * step
    return (
        f"{ranks} of {num_devices} GPUs: a global batch of {settings.global_batch} is {units} ghost batches of"
        f" {settings.ghost_batch}, which {num_devices} do not divide; train.global_batch {above} would use all"
    )


def _micro_batch_reason(micro_batch: int, limit: int, guess: str, settings: TrainSettings) -> str:
    if micro_batch > limit:
        return (
            f"one ghost batch, above the {limit} that fit for certain ({guess}): should memory run out, lower train.ghost_batch"
            " (which changes what is learnt) or the size of the samples"
        )
    whole = f"whole ghost batches of {settings.ghost_batch}, " if settings.ghost_batch > 1 else ""
    return f"{limit} at most ({guess}); {whole}dividing the global batch of {settings.global_batch}"


def _accumulation_reason(ranks: int, micro_batch: int, accumulation: int) -> str:
    return (
        f"{_count(ranks, 'rank')} x {_count(micro_batch, 'sample')} x {_count(accumulation, 'time')}"
        f" = the global batch of {ranks * micro_batch * accumulation}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("ch") else "s")
