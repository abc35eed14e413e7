"""How long one record takes: real calls replayed at batch 1, the contestants in turn, so that a busy machine is unfair to none."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from contracts.records import Records
from contracts.workload import Run
from tasks.shipping.recording import Call, calls, spread
from tasks.trained import Trained

NUM_RECORDS = 8
MIN_ROUNDS, MAX_ROUNDS = 15, 200


def laps(trained: Trained, run: Run, records: Records) -> list[list[Call]]:
    """The calls that measuring makes, record by record, for a few of the records."""
    found: dict[str, list[Call]] = {}
    for call in calls(trained, run, spread(records, NUM_RECORDS)):
        found.setdefault(call.key, []).append(call)
    return list(found.values())


def interleaved(contestants: Mapping[str, Run], laps: Sequence[Sequence[Call]], *, seconds: float) -> dict[str, float]:
    """The median time of one record for each contestant, milliseconds.

    Each round times every contestant once on the same record, starting with another one each time; rounds go on for about
    `seconds` for each contestant, or until there are enough.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for run in contestants.values():
        for warm_up in laps[:3]:
            lap(run, warm_up)
    end = time.perf_counter() + seconds * len(names)
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.perf_counter() > end:
            break
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(lap(contestants[name], laps[number % len(laps)]))
    return {name: statistics.median(found) * 1000 for name, found in times.items()}


def lap(run: Run, calls: Sequence[Call]) -> float:
    """Seconds for the calls of one record."""
    start = time.perf_counter()
    for call in calls:
        run(call.graph, **call.inputs)
    return time.perf_counter() - start


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch on one thread, as the sessions it is compared with."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
