"""Which samples a run sees, in which order: drawn for the whole run, then divided among the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from engine.drawing import Draws, Numbers
from engine.randomness import generator

# How long samples are: records and, for each, how often it was drawn before.
Lengths = Callable[[Numbers, Numbers], Numbers]


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

    With `buckets`, the whole batches of an epoch are taken so many at a time, their samples sorted by what `lengths` says of
    them and cut into batches anew, the longest first, and the batches shuffled. So samples of one batch, and even more of one
    micro-batch, are about equally long; each is still drawn once, whatever the ranks and micro-batches are.
    """

    num_records: int
    global_batch: int
    epochs: float
    seed: int
    weights: NDArray[np.float64] | None = field(default=None, compare=False, repr=False)
    buckets: int = 0
    lengths: Lengths | None = field(default=None, compare=False, repr=False)

    @property
    def num_steps(self) -> int:
        return max(1, math.ceil(self.epochs * self.num_records / self.global_batch))

    @cached_property
    def draws(self) -> Draws:
        return Draws(self.num_records, self.seed, self.weights)

    def batch(self, step: int) -> list[Sample]:
        """The samples of one step, in order."""
        progress, found = step / self.num_steps, []
        for place in self._places(step):
            epoch, number = divmod(int(place), self.num_records)
            indices, draws = self.draws.order(epoch)
            found.append(Sample(epoch, int(indices[number]), int(draws[number]), progress))
        return found

    def _places(self, step: int) -> Numbers:
        """Where the samples of a step stand in the run's draws, one epoch after another."""
        first = step * self.global_batch
        epoch = first // self.num_records
        whole = -(-epoch * self.num_records // self.global_batch), (epoch + 1) * self.num_records // self.global_batch
        if self.lengths is None or not self.buckets or step >= whole[1]:
            return np.arange(first, first + self.global_batch)
        start = step - (step - whole[0]) % self.buckets
        steps = range(start, min(start + self.buckets, whole[1]))
        return _by_length(self.draws, self.lengths, epoch, steps, self.global_batch)[step - start]

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


@lru_cache(maxsize=2)
def _by_length(draws: Draws, lengths: Lengths, epoch: int, steps: range, size: int) -> Numbers:
    """The places of some steps of an epoch [steps, size], brought together by length."""
    places = np.arange(steps.start * size, steps.stop * size)
    numbers = places - epoch * draws.num_records
    indices, earlier = draws.order(epoch)
    order = np.argsort(-lengths(indices[numbers], earlier[numbers]), kind="stable")
    batches = places[order].reshape(-1, size)
    shuffled = generator(draws.seed, "buckets", steps.start).permutation(len(steps))
    if steps.start == 0:  # the run begins with the longest batch: one that does not fit into memory shows at once
        longest = int(shuffled.argmin())
        shuffled[[0, longest]] = shuffled[[longest, 0]]
    return batches[shuffled]
