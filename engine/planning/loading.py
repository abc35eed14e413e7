"""How far loader processes read ahead."""

from __future__ import annotations

from contracts.plan import Hardware
from engine.planning.footprint import GIB

PREFETCH_BY_FREE_MEMORY = ((64, 4), (32, 3), (0, 2))


def prefetch(hardware: Hardware) -> int:
    """Batches that each loader process keeps ready."""
    return next(batches for size, batches in PREFETCH_BY_FREE_MEMORY if hardware.free_memory >= size * GIB)


def prefetch_reason(hardware: Hardware, batches: int, workers: int) -> str:
    """Why so many."""
    if not workers:
        return "not used: there are no loader processes"
    return f"{batches} batches ahead for each loader process, as {hardware.free_memory / GIB:.0f} GiB of memory are free"
