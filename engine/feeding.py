"""Batches for one rank: a DataLoader over the part of the stream that is its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from contracts.plan import Plan
from contracts.workload import Dataset
from engine.beacon import reading, start_worker
from engine.randomness import generator
from engine.stream import Sample, Stream

Batch = dict[str, Any]
# A micro-batch, and which samples it is made of.
Drawn = tuple[list[Sample], Batch]


@dataclass(frozen=True)
class _Keyed(TorchDataset[Any]):
    """The workload's dataset, asked for samples instead of indices."""

    dataset: Dataset
    seed: int

    def __getitem__(self, sample: Sample) -> tuple[Sample, Any]:
        rng = generator(self.seed, "sample", sample.draw, sample.index)
        with reading(f"record {sample.index}, epoch {sample.epoch}"):
            return sample, self.dataset.item(sample.index, rng, draw=sample.draw, progress=sample.progress)

    def collate(self, items: Sequence[tuple[Sample, Any]]) -> Drawn:
        samples, examples = zip(*items, strict=True)
        return list(samples), self.dataset.collate(examples)


class _Share(Sampler[list[Sample]]):
    """The micro-batches of a rank from a step on, to the end of the run."""

    def __init__(self, stream: Stream, plan: Plan, *, rank: int, first_step: int) -> None:
        self.stream, self.plan, self.rank, self.first_step = stream, plan, rank, first_step

    def __iter__(self) -> Iterator[list[Sample]]:
        for step in range(self.first_step, self.stream.num_steps):
            yield from self.stream.share(step, rank=self.rank, ranks=self.plan.ranks, micro_batch=self.plan.micro_batch)

    def __len__(self) -> int:
        return (self.stream.num_steps - self.first_step) * self.plan.accumulation


def feed(dataset: Dataset, stream: Stream, plan: Plan, *, rank: int, first_step: int, beacons: Path) -> Iterator[Drawn]:
    """This rank's micro-batches in order, from `first_step` to the end of the run, on the CPU, each with its samples.

    Loader processes say in the folder `beacons` what they are doing.
    """
    keyed = _Keyed(dataset, stream.seed)
    loader = DataLoader(
        keyed,
        batch_sampler=_Share(stream, plan, rank=rank, first_step=first_step),
        collate_fn=keyed.collate,
        num_workers=plan.workers,
        prefetch_factor=plan.prefetch if plan.workers else None,
        pin_memory=plan.device == "cuda",
        worker_init_fn=_Worker(beacons, rank),
        multiprocessing_context="spawn" if plan.workers else None,
    )
    with _held_back():
        return iter(loader)


@dataclass(frozen=True)
class _Worker:
    """What a loader process does first."""

    beacons: Path
    rank: int

    def __call__(self, worker: int) -> None:
        torch.set_num_threads(1)
        start_worker(self.beacons, self.rank, worker)
        _leave_group()


def moved(values: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch, or an output, with its tensors on `device`."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


STOPPING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def _held_back() -> Iterator[None]:
    """Inside, this thread takes no signal to stop, nor do the processes that it starts, until they `_leave_group`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_group() -> None:
    """torchrun tells a rank to stop by a signal to its process group. A loader must live on until the rank has ended."""
    if not hasattr(os, "setpgid"):
        return
    os.setpgid(0, 0)
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)  # drops what was held back
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
