"""Batches for one rank: a DataLoader over the part of the stream that is its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from contracts.plan import Plan
from contracts.workload import Dataset
from engine.randomness import generator
from engine.stream import Sample, Stream


@dataclass(frozen=True)
class _Keyed(TorchDataset[Any]):
    """The workload's dataset, asked for samples instead of indices."""

    dataset: Dataset
    seed: int

    def __getitem__(self, sample: Sample) -> Any:
        rng = generator(self.seed, "sample", sample.epoch, sample.index)
        return self.dataset.item(sample.index, rng, progress=sample.progress)


class _Share(Sampler[list[Sample]]):
    """The micro-batches of a rank from a step on, to the end of the run."""

    def __init__(self, stream: Stream, plan: Plan, *, rank: int, first_step: int) -> None:
        self.stream, self.plan, self.rank, self.first_step = stream, plan, rank, first_step

    def __iter__(self) -> Iterator[list[Sample]]:
        for step in range(self.first_step, self.stream.num_steps):
            yield from self.stream.share(step, rank=self.rank, ranks=self.plan.ranks, micro_batch=self.plan.micro_batch)

    def __len__(self) -> int:
        return (self.stream.num_steps - self.first_step) * self.plan.accumulation


def feed(dataset: Dataset, stream: Stream, plan: Plan, *, rank: int, first_step: int) -> Iterator[dict[str, Any]]:
    """This rank's micro-batches in order, from `first_step` to the end of the run, on the CPU."""
    loader = DataLoader(
        _Keyed(dataset, stream.seed),
        batch_sampler=_Share(stream, plan, rank=rank, first_step=first_step),
        collate_fn=dataset.collate,
        num_workers=plan.workers,
        prefetch_factor=plan.prefetch if plan.workers else None,
        pin_memory=plan.device == "cuda",
        worker_init_fn=_one_thread,
        multiprocessing_context="spawn" if plan.workers else None,
    )
    return iter(loader)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
