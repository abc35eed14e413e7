"""Which samples a run sees, in which order: drawn for the whole run, then divided among the ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from engine.drawing import Draws


@dataclass(frozen=True)
class Sample:
    """One draw: which record, in which epoch, and how much of the run is over.

    `draw` is how often the record was drawn before in the run: its augmentation depends on that. It is the epoch where every
    record is drawn once in each.
    """

    epoch: int
    index: int
    draw: int
    progress: float


@dataclass(frozen=True)
class Stream:
    """The draws of one epoch after another, cut into global batches; a batch may span the end of an epoch.

    So every batch is full, and in each epoch every record is drawn once: none is dropped, none repeated. With `weights`, a
    number of 0 or more for each record, it is drawn in proportion to them (see `Draws`).
    """

    num_records: int
    global_batch: int
    epochs: float
    seed: int
    weights: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)

    @property
    def num_steps(self) -> int:
        return max(1, math.ceil(self.epochs * self.num_records / self.global_batch))

    @cached_property
    def draws(self) -> Draws:
        return Draws(self.num_records, self.seed, self.weights)

    def batch(self, step: int) -> list[Sample]:
        """The samples of one step, in order."""
        first, progress = step * self.global_batch, step / self.num_steps
        found = []
        for place in range(first, first + self.global_batch):
            epoch, number = divmod(place, self.num_records)
            indices, draws = self.draws.order(epoch)
            found.append(Sample(epoch, int(indices[number]), int(draws[number]), progress))
        return found

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
