"""The layout on GPUs: a rank a GPU, and as many samples at once as the smallest of them holds."""

from __future__ import annotations

from collections.abc import Sequence

from contracts.errors import SlipwayError
from contracts.plan import Backend, Device, Hardware, Plan, Precision
from contracts.settings import PlanSettings, TrainSettings
from engine.planning.division import count, largest_divisor
from engine.planning.footprint import GIB, Footprint
from engine.planning.loading import prefetch, prefetch_reason
from engine.planning.platforms import Installed, meeting
from engine.planning.wishes import COST_OF_DP, SHARDING, as_wished

# Samples a micro-batch by the memory of the smallest GPU in nominal GiB: a first guess, which measuring may better.
FIRST_GUESS = ((140, 128), (80, 64), (40, 32), (20, 16), (14, 12), (10, 8), (6, 4), (0, 2))
# A card sold with 20 GB reports between 19.0 and 20.0 GiB, according to who is asked.
NOMINAL = 0.95
# Below this free part somebody else is using the GPU, and only what is free counts.
SHARED = 0.6
# The part of a GPU's memory that a known footprint may fill: kernels and fragments need the rest.
FILL = 0.9
WORKERS_PER_RANK, SPARE_CORES = 3, 2


def on_gpus(
    hardware: Hardware, settings: TrainSettings, wishes: PlanSettings, installed: Installed, footprint: Footprint | None
) -> Plan:
    """The plan for a machine with GPUs.

    Raises:
        SlipwayError: when one ghost batch does not fit, whatever is divided.
    """
    pieces = settings.global_batch // (wishes.micro_batch or settings.ghost_batch)
    num = 1 if wishes.backend == "single" else wishes.ranks or largest_divisor(pieces, at_most=len(hardware.devices))
    used = hardware.devices[:num]
    backend, backend_reason = _backend(hardware, settings, wishes, installed, footprint, used)
    limit, guess = _limit(used, settings, wishes, footprint, backend)
    ranks, replicas = (1, num) if backend == "dp" else (num, 1)
    fitting = largest_divisor(pieces // num, at_most=limit // settings.ghost_batch) * settings.ghost_batch
    micro_batch = wishes.micro_batch or fitting
    accumulation = settings.global_batch // ranks // micro_batch
    workers = max(0, min(WORKERS_PER_RANK * replicas, (hardware.cores - SPARE_CORES) // ranks))
    precision, precision_reason = _precision(used, wishes, backend)
    ahead = prefetch(hardware)
    return Plan(
        backend=backend,
        device="cuda",
        ranks=ranks,
        micro_batch=micro_batch,
        accumulation=accumulation,
        threads=max(1, hardware.cores // ranks - workers),
        workers=workers,
        prefetch=ahead,
        precision=precision,
        replicas=replicas,
        reasons={
            "backend": backend_reason,
            "device": _device_reason(used),
            "ranks": "one process drives all of them" if backend == "dp" else _ranks_reason(hardware, num, settings, wishes),
            "replicas": f"{_ranks_reason(hardware, num, settings, wishes)}, each with a copy of the model"
            if backend == "dp"
            else "a GPU a rank",
            "micro_batch": "as plan.micro_batch says"
            if wishes.micro_batch
            else _micro_batch_reason(micro_batch, limit, guess, settings),
            "accumulation": accumulation_reason(ranks, micro_batch, accumulation),
            "threads": f"{count(hardware.cores, 'core')} for {count(ranks, 'rank')}, less {workers} loading in each (1 at least)",
            "workers": f"{WORKERS_PER_RANK} a GPU, as long as {SPARE_CORES} of the {hardware.cores} cores stay free;"
            f" {workers * ranks} in all",
            "prefetch": prefetch_reason(hardware, ahead, workers),
            "precision": precision_reason,
        },
    )


def _backend(
    hardware: Hardware,
    settings: TrainSettings,
    wishes: PlanSettings,
    installed: Installed,
    footprint: Footprint | None,
    used: Sequence[Device],
) -> tuple[Backend, str]:
    """The backend for these GPUs, and why."""
    num, met = len(used), meeting("cuda", hardware.platform, installed)
    if wishes.backend != "auto":
        return wishes.backend, as_wished(wishes.backend, met.reason if num > 1 and wishes.backend != "single" else "")
    if wishes.offload != "none":
        return "fsdp", f"plan.offload is {wishes.offload}, which fsdp can; {met.reason}"
    if num == 1:
        return "single", "one device and one rank: nothing to exchange"
    if met.group is None:
        return "dp", f"one process for all {num} GPUs, {COST_OF_DP}; {met.reason}"
    if footprint and not hardware.platform.startswith("Windows"):
        room = FILL * min(map(usable_memory, used))
        whole, part = (footprint.needed(settings.ghost_batch, kind, ranks=num) for kind in ("ddp", "fsdp"))
        if whole > room >= part:
            return (
                "fsdp",
                f"a whole model and a ghost batch need {whole / GIB:.1f} GiB, divided among {num} ranks {part / GIB:.1f}",
            )
    return "ddp", f"{num} ranks average their gradients through {met.reason}"


def _limit(
    used: Sequence[Device], settings: TrainSettings, wishes: PlanSettings, footprint: Footprint | None, backend: Backend
) -> tuple[int, str]:
    """The largest micro-batch, in samples, that the smallest GPU should hold, and where the number comes from."""
    smallest = min(used, key=usable_memory)
    memory = usable_memory(smallest)
    where = f"{smallest.name} has {memory / GIB:.1f} GiB" + (
        "" if memory == smallest.memory else " free (others use the rest)"
    )
    if len({one.name for one in used}) > 1:
        where = f"the smallest GPU decides: {where}"
    if footprint is None:
        return next(guess for size, guess in FIRST_GUESS if memory >= size * NOMINAL * GIB), f"{where}, first guess"
    resting = footprint.resting(backend, ranks=len(used), zero_stage=wishes.zero_stage, offload=wishes.offload)
    limit = int((FILL * memory - resting) / max(1, footprint.sample))
    if limit < settings.ghost_batch:
        raise SlipwayError(_does_not_fit(resting, footprint, where, limit, settings, wishes, backend))
    return limit, f"{where}, the model takes {resting / GIB:.2f} and a sample {footprint.sample / GIB:.3f}"


def _does_not_fit(
    resting: int,
    footprint: Footprint,
    where: str,
    limit: int,
    settings: TrainSettings,
    wishes: PlanSettings,
    backend: Backend,
) -> str:
    recomputed = wishes.activation_checkpointing is True
    ways = [] if recomputed else ["set plan.activation_checkpointing to true"]
    if wishes.offload == "none":
        ways.append(f"let plan.offload be optimizer{'' if backend in SHARDING else ' (with plan.backend auto)'}")
    if limit > 0:
        ways.append(f"set train.ghost_batch to {limit} or less")
    how = f"{backend}, activations computed twice" if recomputed else backend
    return (
        f"a model of {resting / GIB:.2f} GiB and a ghost batch of {settings.ghost_batch} samples at {footprint.sample / GIB:.2f} GiB"
        f" each do not fit with {how}: {where}. {'; or '.join([*ways, 'make the samples or the model smaller'])}"
    )


def usable_memory(device: Device) -> int:
    """Bytes that training may count on."""
    return device.free if device.free < SHARED * device.memory else device.memory


def _precision(used: Sequence[Device], wishes: PlanSettings, backend: Backend) -> tuple[Precision, str]:
    lowest = min(used, key=lambda one: one.capability)
    name = f"{lowest.name} has compute capability {'.'.join(map(str, lowest.capability))}"
    if wishes.precision != "auto":
        slow = wishes.precision == "bf16" and lowest.capability < (8, 0)
        return wishes.precision, "as plan.precision says" + (
            f"; warning: {name}, bf16 is native from 8.0 only" if slow else ""
        )
    if lowest.capability >= (8, 0):
        return "bf16", f"{name}: bf16 is native from 8.0 and needs no loss scaling"
    if lowest.capability >= (7, 0) and backend in SHARDING:
        return "fp32", f"{name}: bf16 is native from 8.0 only, and fp16's loss scaling is not supported with {backend}"
    if lowest.capability >= (7, 0):
        return "fp16", f"{name}: fp16 with loss scaling from 7.0; bf16 is native from 8.0 only"
    return "fp32", f"{name}: half precision is slower than fp32 below 7.0"


def _device_reason(used: Sequence[Device]) -> str:
    names = [one.name for one in used]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _ranks_reason(hardware: Hardware, num: int, settings: TrainSettings, wishes: PlanSettings) -> str:
    there = len(hardware.devices)
    if wishes.ranks:
        return f"as plan.ranks says, of {count(there, 'GPU')}"
    if wishes.backend == "single" and there > 1:
        return f"plan.backend is single: one of {there} GPUs works"
    if num == there:
        return f"all {there} GPUs" if there > 1 else "the only GPU"
    size, kind = (wishes.micro_batch, "micro-batches") if wishes.micro_batch else (settings.ghost_batch, "ghost batches")
    above = -(-settings.global_batch // (size * there)) * size * there
    return (
        f"{num} of {there} GPUs: a global batch of {settings.global_batch} is {settings.global_batch // size} {kind} of"
        f" {size}, which {there} do not divide; train.global_batch {above} would use all"
    )


def _micro_batch_reason(micro_batch: int, limit: int, guess: str, settings: TrainSettings) -> str:
    if micro_batch > limit:
        return (
            f"one ghost batch, above the {limit} that fit for certain ({guess}): should memory run out, lower train.ghost_batch"
            " (which changes what is learnt) or the size of the samples"
        )
    whole = f"whole ghost batches of {settings.ghost_batch}, " if settings.ghost_batch > 1 else ""
    return f"{limit} at most ({guess}); {whole}dividing the global batch of {settings.global_batch}"


def accumulation_reason(ranks: int, micro_batch: int, accumulation: int) -> str:
    """The product that makes the global batch."""
    return (
        f"{count(ranks, 'rank')} x {count(micro_batch, 'sample')} x {count(accumulation, 'time')}"
        f" = the global batch of {ranks * micro_batch * accumulation}"
    )
