"""How a number of ghost batches is cut into ranks, micro-batches and accumulation."""

from __future__ import annotations

from dataclasses import replace

from contracts.plan import Plan
from contracts.settings import TrainSettings


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


def micro_batches(settings: TrainSettings, *, ranks: int) -> tuple[int, ...]:
    """The micro-batches, in samples, that divide a rank's part of the global batch into whole ghost batches; rising."""
    ghosts = settings.global_batch // settings.ghost_batch // ranks
    return tuple(one * settings.ghost_batch for one in range(1, ghosts + 1) if ghosts % one == 0)


def with_micro_batch(plan: Plan, micro_batch: int) -> Plan:
    """The same global batch on the same ranks in other micro-batches."""
    return replace(plan, micro_batch=micro_batch, accumulation=plan.global_batch // plan.ranks // micro_batch)


def count(number: int, noun: str) -> str:
    """A number of things in words: 1 core, 2 cores, 2 batches."""
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith("ch") else "s")
