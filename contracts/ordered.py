"""Work spread over processes whose results come back in the order of the tasks, with a bounded number of them under way."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from contracts.errors import SlipwayError

R = TypeVar("R")
CHUNK = 64
# Work that is done within this time is done before other processes have imported what they need.
ALONE_SECONDS = 2.0
AHEAD = 3


def in_order(
    work: Callable[[Sequence[Any]], list[R]],
    tasks: Iterable[Any],
    processes: int,
    *,
    size_of: Callable[[Any], int] = lambda task: 1,
) -> Iterator[tuple[int, list[R]]]:
    """(size of the tasks, `work` of them) for each chunk of `tasks`, in their order whatever `processes` is.

    A chunk is CHUNK tasks, or as many as have CHUNK for the sum of their sizes. This process begins alone; the others are
    spawned (`work` must be a function that they can import) when there is more than ALONE_SECONDS of work. Memory: AHEAD
    chunks a process.
    """
    chunks = _chunks(tasks, size_of)
    start = time.monotonic()
    for size, chunk in chunks:
        yield size, work(chunk)
        if processes > 1 and time.monotonic() - start >= ALONE_SECONDS:
            break
    else:
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        under_way: deque[tuple[int, Future[list[R]]]] = deque()
        try:
            for size, chunk in chunks:
                under_way.append((size, pool.submit(work, chunk)))
                if len(under_way) >= AHEAD * processes:
                    yield _finished(under_way)
            while under_way:
                yield _finished(under_way)
        finally:
            for _, future in under_way:
                future.cancel()


def _finished(under_way: deque[tuple[int, Future[list[R]]]]) -> tuple[int, list[R]]:
    size, future = under_way.popleft()
    try:
        return size, future.result()
    except BrokenProcessPool:
        raise SlipwayError(
            "a process that was reading labels was killed, most likely because memory ran out: use fewer processes"
            " (SLIPWAY_PROCESSES=1) or close other programs"
        ) from None


def _chunks(tasks: Iterable[Any], size_of: Callable[[Any], int]) -> Iterator[tuple[int, list[Any]]]:
    size, chunk = 0, []
    for task in tasks:
        chunk.append(task)
        size += size_of(task)
        if size >= CHUNK or len(chunk) >= CHUNK:
            yield size, chunk
            size, chunk = 0, []
    if chunk:
        yield size, chunk
