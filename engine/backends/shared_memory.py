"""Sums over the ranks of one machine in memory that they share: through sockets, each byte would be copied four times.

The ranks still wait for each other in gloo, with a message of one number, and so a lost rank is noticed as ever. Linux only: the
memory has no name there, so nothing is left behind however the ranks end.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
import torch.distributed as dist

BYTES = torch.float32.itemsize


class SharedMemory:
    """Room for a message [length] in fp32 of each rank, and for their sum."""

    def __init__(self, memory: mmap.mmap, length: int) -> None:
        rank, ranks = dist.get_rank(), dist.get_world_size()
        room = torch.frombuffer(memory, dtype=torch.float32).view(ranks + 1, length)
        self._messages, self._mine, self._sum = room[:-1], room[rank], room[-1]
        # Each rank adds up a part of the messages.
        self._part = slice(length * rank // ranks, length * (rank + 1) // ranks)
        self._word = torch.zeros(1)

    def send(self, rows: Sequence[torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Send rows that are `length` elements together; the wait gives the sum over the ranks, the same on each."""
        torch.cat(list(rows), out=self._mine)
        written = dist.all_reduce(self._word, async_op=True)

        def arrived() -> torch.Tensor:
            written.wait()
            torch.sum(self._messages[:, self._part], dim=0, out=self._sum[self._part])
            dist.all_reduce(self._word)
            # Nobody writes into the sum again before this rank has sent its next message.
            return self._sum.clone()

        return arrived


def share_memory(length: int) -> SharedMemory | None:
    """Room for messages [length] of all ranks, who must ask for it together; None where they cannot share memory."""
    if int(os.environ["LOCAL_WORLD_SIZE"]) != dist.get_world_size() or not hasattr(os, "memfd_create"):
        return None
    size = (dist.get_world_size() + 1) * length * BYTES
    owned = _make(size) if dist.get_rank() == 0 else None
    place: list[str | None] = [None if owned is None else f"/proc/{os.getpid()}/fd/{owned}"]
    dist.broadcast_object_list(place, src=0)
    memory = _open(place[0], size)
    missing = torch.tensor([float(memory is None)])
    dist.all_reduce(missing)
    if owned is not None:
        os.close(owned)
    return None if memory is None or missing else SharedMemory(memory, length)


def _make(size: int) -> int | None:
    """A file in memory, without a name."""
    with suppress(OSError):
        file = os.memfd_create("slipway")
        try:
            os.ftruncate(file, size)
        except OSError:
            os.close(file)
            raise
        return file
    return None


def _open(place: str | None, size: int) -> mmap.mmap | None:
    with suppress(OSError):
        if place:
            with open(place, "r+b", buffering=0) as file:
                return mmap.mmap(file.fileno(), size)
    return None
