"""Which samples a run sees, in which order: drawn for the whole run, then divided among the ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from engine.randomness import generator


@dataclass(frozen=True)
class Sample:
    """One draw: which record, in which epoch (its augmentation depends on both), and how much of the run is over."""

    epoch: int
    index: int
    progress: float


@dataclass(frozen=True)
class Stream:
    """One permutation of the records after another, cut into global batches; a batch may span the end of an epoch.

    So every batch is full, and in each epoch every record is drawn once: none is dropped, none repeated.
    """

    num_records: int
    global_batch: int
    epochs: float
    seed: int

    @property
    def num_steps(self) -> int:
        return max(1, math.ceil(self.epochs * self.num_records / self.global_batch))

    def batch(self, step: int) -> list[Sample]:
        """The samples of one step, in order."""
        first = step * self.global_batch
        places = (divmod(place, self.num_records) for place in range(first, first + self.global_batch))
        progress = step / self.num_steps
        return [Sample(epoch, int(_order(self.num_records, self.seed, epoch)[place]), progress) for epoch, place in places]

    def epoch_after(self, step: int) -> float:
        """How many epochs are over once `step` steps are done."""
        return step * self.global_batch / self.num_records

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch (or the run) ends in the step number `step`."""
        return step + 1 == self.num_steps or math.floor(self.epoch_after(step + 1)) > math.floor(self.epoch_after(step))

    def share(self, step: int, *, rank: int, ranks: int, micro_batch: int) -> Iterator[list[Sample]]:
        """The micro-batches of one rank in one step. Together the ranks take every sample of the batch once."""
        batch = self.batch(step)
        for start in range(rank * micro_batch, len(batch), ranks * micro_batch):
            yield batch[start : start + micro_batch]


@lru_cache(maxsize=4)
def _order(num_records: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, "order", epoch).permutation(num_records)
