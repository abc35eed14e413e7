"""Small runs of two ranks, each of which gets stuck in its own way: `python hanging.py FOLDER KIND...`.

A run trains as the engine does and has its own folder of beacons. Torch is imported once, and every rank forked from
there: a test starts all of them at the price of one.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what DDP and the optimiser would import in every rank
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from engine import beacon

STUCK_STEP, NUM_STEPS, RANKS, BATCH = 3, 6, 2, 2
FOR_EVER = 3600.0
SLOW_SECONDS = 0.8  # shorter than the bound of the tests; one step has several


def sleep_for_ever() -> None:
    time.sleep(FOR_EVER)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hold_the_lock() -> None:
    """Sleep in C without giving the interpreter's lock back. A signal would end a sleep, so it is begun again."""
    libc = ctypes.PyDLL(None)
    while True:
        libc.sleep(3600)


def wait_for_a_lock() -> None:
    lock = threading.Lock()
    with lock:
        lock.acquire()


def take_an_extra_collective() -> None:
    with beacon.collective("extra sum"):
        dist.all_reduce(torch.ones(1), group=Rank.other_group)


def finish_but_stay() -> None:
    beacon.finish()
    sleep_for_ever()


def spin() -> None:
    while True:
        pass


# Where a rank gets stuck, which rank (None: all), and in what. `skip` is not a call but a turn of the loop.
PLANTED: dict[str, tuple[str, int | None, Callable[[], None]]] = {
    "reading": ("reading", 1, sleep_for_ever),
    "reading everywhere": ("reading", None, sleep_for_ever),
    "loader worker": ("loader", 1, sleep_for_ever),
    "loader worker stopped": ("loader", 0, stop),
    "forward": ("forward", 0, wait_for_a_lock),
    "backward": ("backward", 1, sleep_for_ever),
    "backward that computes": ("backward", 0, spin),
    "optimizer": ("optimizer", 1, sleep_for_ever),
    "extra collective": ("losses", 1, take_an_extra_collective),
    "skipped collective": ("skip", 1, sleep_for_ever),
    "finished early": ("finish", 0, finish_but_stay),
    "stopped": ("forward", 1, stop),
    "lock held in C": ("forward", 1, hold_the_lock),
    "validation": ("validating", 0, sleep_for_ever),
    "saving": ("saving", 0, sleep_for_ever),
    "start": ("start", 1, sleep_for_ever),
    "slow": ("forward", 1, functools.partial(time.sleep, SLOW_SECONDS)),
}


class Stuck(torch.autograd.Function):
    """The identity, whose gradient never comes."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, rank: Rank) -> torch.Tensor:
        ctx.rank = rank
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.rank.perhaps_stuck("backward")
        return gradients[0], None


class Numbers(Dataset[torch.Tensor]):
    """Samples that are numbers; one of them may never come."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank

    def __len__(self) -> int:
        return NUM_STEPS * BATCH

    def __getitem__(self, index: int) -> torch.Tensor:
        with beacon.reading(f"sample-{index}"):
            if index == STUCK_STEP * BATCH:
                self.rank.step = STUCK_STEP
                self.rank.perhaps_stuck("reading")
                self.rank.perhaps_stuck("loader")
            return torch.full((4,), float(index))


class Rank:
    """One rank of one run."""

    other_group: Any = None

    def __init__(self, folder: Path, kind: str, rank: int) -> None:
        self.folder, self.kind, self.rank, self.step = folder, kind, rank, -1

    def perhaps_stuck(self, where: str) -> bool:
        """Get stuck here, if that is what was planted; true afterwards, where it was no hang."""
        place, rank, how = PLANTED[self.kind]
        here = where == place and self.rank in (rank, self.rank if rank is None else rank)
        planted = here and (self.step == STUCK_STEP or where == "start" or (self.kind == "slow" and self.step > STUCK_STEP))
        if planted:
            (self.folder / "stuck").touch()
        if planted and where != "skip":
            how()
        return planted

    def run(self) -> None:
        beacon.start(self.folder, self.rank)
        self.perhaps_stuck("start")
        file = f"file://{self.folder}/store"
        hours = timedelta(hours=1)
        with beacon.collective("joining the group"):
            dist.init_process_group("gloo", init_method=file, rank=self.rank, world_size=RANKS, timeout=hours)
        Rank.other_group = dist.new_group(backend="gloo")
        torch.manual_seed(0)
        self.objective = DistributedDataParallel(nn.Linear(4, 1))
        self.optimizer = torch.optim.SGD(self.objective.parameters(), lr=1e-6)
        batches = iter(self.loader())
        first = next(batches)  # so that the start of the loader's processes is no step
        for step in range(NUM_STEPS):
            self.step = step
            self.perhaps_stuck("finish")
            keys = [f"sample-{index}" for index in range(step * BATCH, (step + 1) * BATCH)]
            beacon.mark(beacon.WAITING_FOR_DATA, step=step, keys=keys)
            self.train(first if step == 0 else next(batches))
        beacon.finish()
        os._exit(0)

    def loader(self) -> DataLoader[torch.Tensor]:
        if PLANTED[self.kind][0] != "loader":
            return DataLoader(Numbers(self), batch_size=BATCH)
        begin = functools.partial(beacon.start_worker, self.folder, self.rank)
        return DataLoader(Numbers(self), batch_size=BATCH, num_workers=1, worker_init_fn=begin, prefetch_factor=1)

    def train(self, batch: torch.Tensor) -> None:
        for _ in range(5 if self.kind == "slow" else 1):
            beacon.mark("forward")
            self.perhaps_stuck("forward")
        loss = Stuck.apply(self.objective(batch), self).sum()
        beacon.mark("backward")
        with beacon.collective("all-reduce of gradients"):
            loss.backward()
        if not self.perhaps_stuck("skip"):
            self.perhaps_stuck("losses")
            with beacon.collective("all-reduce of losses"):
                dist.all_reduce(torch.ones(1), group=Rank.other_group)
        beacon.mark("optimizer")
        self.perhaps_stuck("optimizer")
        self.optimizer.step()
        beacon.mark("validating")
        self.perhaps_stuck("validating")
        beacon.mark("saving")
        self.perhaps_stuck("saving")


def main(folder: Path, kinds: list[str]) -> None:
    """Run all kinds side by side. They never end: kill the process group, which holds the loader workers too."""
    _die_with_parent()
    torch.set_num_threads(1)
    for kind in kinds:
        for rank in range(RANKS):
            if os.fork() == 0:
                _die_with_parent()
                Rank(folder / kind.replace(" ", "-"), kind, rank).run()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        time.sleep(1)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
