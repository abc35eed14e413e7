"""The layout on a CPU: ranks share work better than threads do, as long as each has the memory for a model of its own."""

from __future__ import annotations

from collections.abc import Callable

from contracts.errors import SlipwayError
from contracts.plan import Backend, Hardware, Plan, Precision
from contracts.settings import PlanSettings, TrainSettings
from engine.planning.division import count, micro_batches
from engine.planning.footprint import GIB, Footprint
from engine.planning.gpu import WORKERS_PER_RANK, accumulation_reason
from engine.planning.loading import prefetch, prefetch_reason
from engine.planning.platforms import Installed, meeting
from engine.planning.wishes import as_wished

MAX_CPU_RANKS = 8
# Part of a training step on the CPU that threads share: 2 threads ran 1.38 times as fast as 1 (Amdahl's law, solved).
PARALLEL = 0.55
# From about so many samples at once a core works at its full speed; fewer of a small model pay more for each call than for its work.
ENOUGH_SAMPLES = 32
# What a process costs before its first sample (torch and its libraries), and what a sample costs, measured roughly.
RANK_BYTES, CPU_EXAMPLE_BYTES, WORKER_BYTES = GIB, 64 << 20, GIB // 3


def on_cpu(
    hardware: Hardware, settings: TrainSettings, wishes: PlanSettings, installed: Installed, footprint: Footprint | None
) -> Plan:
    """The plan for a machine without GPUs, or one whose GPUs are left alone.

    Raises:
        SlipwayError: when one rank with one ghost batch needs more memory than there is.
    """
    least = wishes.micro_batch or settings.ghost_batch
    pieces = settings.global_batch // least
    met, need = meeting("cpu", hardware.platform, installed), _need(least, footprint)
    if need > hardware.memory:
        raise SlipwayError(
            f"one rank with a ghost batch of {settings.ghost_batch} samples needs about {need / GIB:.1f} GiB, this machine has"
            f" {hardware.memory / GIB:.1f}. Lower train.ghost_batch, make the samples smaller, or give the container more memory"
        )
    alone = wishes.backend in ("single", "dp") or met.group is None
    ranks = 1 if alone else wishes.ranks or _ranks(hardware, pieces, lambda ranks: _need(least, footprint, ranks))
    replicas = (wishes.ranks or 1) if wishes.backend == "dp" else 1
    backend, backend_reason = _backend(ranks, wishes, met.group is None, met.reason)
    room = hardware.free_memory // ranks
    micro_batch = wishes.micro_batch or _micro_batch(
        settings, ranks, lambda samples: _need(samples, footprint, ranks) <= room
    )
    share = hardware.cores // ranks
    workers = _workers(share, max(0, room - _need(micro_batch, footprint, ranks)))
    threads, ahead = max(1, share - workers), prefetch(hardware)
    accumulation = settings.global_batch // ranks // micro_batch
    precision, precision_reason = _precision(hardware, wishes)
    return Plan(
        backend=backend,
        device="cpu",
        ranks=ranks,
        micro_batch=micro_batch,
        accumulation=accumulation,
        threads=threads,
        workers=workers,
        prefetch=ahead,
        precision=precision,
        replicas=replicas,
        reasons={
            "backend": backend_reason,
            "device": "no GPU that torch can use was found",
            "ranks": _ranks_reason(hardware, wishes, ranks, threads, pieces, need),
            "replicas": "copies of the model that take turns in one process: it gains nothing on a CPU"
            if replicas > 1
            else "one model a rank",
            "micro_batch": _micro_batch_reason(micro_batch, settings, wishes),
            "accumulation": accumulation_reason(ranks, micro_batch, accumulation),
            "threads": f"{count(hardware.cores, 'core')} for {count(ranks, 'rank')}"
            + (f", less {workers} loading" if workers else ""),
            "workers": f"a quarter of the rank's {share} cores, {WORKERS_PER_RANK} at most"
            if workers
            else f"{count(share, 'core')} a rank: loading in the rank itself costs least",
            "prefetch": prefetch_reason(hardware, ahead, workers),
            "precision": precision_reason,
        },
    )


def thread_speed(threads: int) -> float:
    """How many times as fast as one thread a rank trains with `threads` of them, on a CPU."""
    return 1 / ((1 - PARALLEL) + PARALLEL / threads)


def _need(samples: int, footprint: Footprint | None, ranks: int = 1) -> int:
    """Bytes of each of some ranks with a micro-batch of so many samples."""
    if footprint is None:
        return RANK_BYTES + samples * CPU_EXAMPLE_BYTES
    # Several hold what each says and its sum, in the memory that they share, besides what comes back to each.
    shared = footprint.weights * (ranks + 1) // ranks if ranks > 1 else 0
    return RANK_BYTES + footprint.needed(samples, "ddp", ranks=ranks) + shared


def _micro_batch(settings: TrainSettings, ranks: int, fits: Callable[[int], bool]) -> int:
    """One ghost batch, or as many as make ENOUGH_SAMPLES at most, divide a rank's part and fit."""
    sizes = micro_batches(settings, ranks=ranks)
    return max((one for one in sizes if one <= ENOUGH_SAMPLES and fits(one)), default=settings.ghost_batch)


def _micro_batch_reason(micro_batch: int, settings: TrainSettings, wishes: PlanSettings) -> str:
    if wishes.micro_batch:
        return "as plan.micro_batch says"
    ghosts = f"{count(micro_batch // settings.ghost_batch, 'ghost batch')} of {count(settings.ghost_batch, 'sample')}"
    return f"{ghosts}: up to {ENOUGH_SAMPLES} samples at once a core gains speed, beyond that they only need memory"


def _ranks(hardware: Hardware, pieces: int, need: Callable[[int], int]) -> int:
    """The number of ranks that promises the most work a second; of equals the fewest. Each of so many holds `need` bytes."""
    candidates = [
        ranks
        for ranks in range(1, min(hardware.cores, MAX_CPU_RANKS) + 1)
        if pieces % ranks == 0 and (ranks == 1 or ranks * need(ranks) <= hardware.free_memory)
    ]
    return max(candidates, key=lambda ranks: (round(ranks * thread_speed(hardware.cores // ranks), 6), -ranks))


def _backend(ranks: int, wishes: PlanSettings, apart: bool, how: str) -> tuple[Backend, str]:
    if wishes.backend != "auto":
        return wishes.backend, as_wished(wishes.backend, how if ranks > 1 or wishes.backend == "dp" else "")
    if apart:
        return "single", f"one process with all threads: {how}"
    if wishes.offload != "none":
        return "fsdp", f"plan.offload is {wishes.offload}, which fsdp can; {how}"
    if ranks == 1:
        return "single", "one device and one rank: nothing to exchange"
    return "ddp", f"{ranks} ranks average their gradients through {how}"


def _workers(cores: int, room: int) -> int:
    """How many processes load for a rank of so many cores, which has `room` bytes left for them."""
    return min(WORKERS_PER_RANK, cores // 4, room // WORKER_BYTES) if cores > 2 else 0


def _precision(hardware: Hardware, wishes: PlanSettings) -> tuple[Precision, str]:
    if wishes.precision != "auto":
        slow = wishes.precision == "bf16" and not hardware.bf16_cpu
        warning = "; warning: bf16 is not native on this processor and is slower than fp32" if slow else ""
        return wishes.precision, "as plan.precision says" + warning
    if hardware.bf16_cpu:
        return (
            "fp32",
            "it rounds least; bf16 is native here and may be faster: `slipway plan --measure` tries it",
        )
    return "fp32", "bf16 is not native on this processor and would be slower"


def _ranks_reason(hardware: Hardware, wishes: PlanSettings, ranks: int, threads: int, pieces: int, need: int) -> str:
    if wishes.ranks and wishes.backend != "dp":
        return f"as plan.ranks says, with {count(threads, 'thread')} each"
    if wishes.backend in ("single", "dp"):
        return f"plan.backend is {wishes.backend}: one process with {count(threads, 'thread')}"
    gain = ranks * thread_speed(threads)
    short = f"; only {hardware.free_memory / GIB:.1f} GiB are free: close other programs"
    return (
        f"ranks share work better than threads (2 threads: {thread_speed(2):.2f} times the speed); {ranks} with"
        f" {count(threads, 'thread')} each should do the work of {gain:.1f} cores, divide the {count(pieces, 'micro-batch' if wishes.micro_batch else 'ghost batch')} of a"
        f" step and need {need / GIB:.1f} GiB each" + (short if need > hardware.free_memory else "")
    )
