"""Which records an epoch draws, how often and in which order: each once, or in proportion to weights."""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from engine.randomness import generator

Numbers = NDArray[np.int64]
# Shares are counted in parts of a draw: whole numbers sum to what they must.
PARTS = 1 << 32


class Draws:
    """The draws of a run's epochs, as many in each as there are records.

    With `weights` [n], a record appears floor(s) or ceil(s) times in an epoch, and s times on average over seeds and epochs,
    where s is its share n * weight / sum: systematic resampling (Kitagawa 1996, doi 10.2307/1390750), keyed by seed and epoch.
    """

    def __init__(self, num_records: int, seed: int, weights: NDArray[np.float64] | None = None) -> None:
        self.num_records, self.seed, self.weights = num_records, seed, weights
        self._counted = 0, np.zeros(num_records, np.int64)

    def times(self, epoch: int) -> Numbers:
        """How often each record is drawn in an epoch [n]."""
        if self.weights is None:
            return np.ones(self.num_records, np.int64)
        random, parts = generator(self.seed, "times", epoch), self._parts
        # Shuffled, so that not the same records go together in every epoch; equal shares side by side, so that those of one
        # share (a data set's, say) are together drawn as often as they should be, give or take one.
        order = random.permutation(self.num_records)
        order = order[np.argsort(parts[order], kind="stable")]
        ends = (np.cumsum(parts[order]) + random.integers(PARTS)) // PARTS
        times = np.empty_like(parts)
        times[order] = np.diff(ends, prepend=0)
        return times

    def order(self, epoch: int) -> tuple[Numbers, Numbers]:
        """The records of an epoch in the order of their draws, and for each draw how often its record was drawn before in the
        run, both [n]."""
        return _order(self, epoch)

    def before(self, epoch: int) -> Numbers:
        """How often each record is drawn in all earlier epochs together [n]."""
        reached, before = self._counted if self._counted[0] <= epoch else (0, np.zeros(self.num_records, np.int64))
        for one in range(reached, epoch):
            before = before + self.times(one)
        self._counted = epoch, before
        return before

    @cached_property
    def _parts(self) -> Numbers:
        """Each record's share of an epoch, in PARTS of a draw [n]; they sum to as many draws as there are records."""
        assert self.weights is not None
        parts = np.rint(self.weights / self.weights.sum() * self.num_records * PARTS).astype(np.int64)
        parts[parts.argmax()] += (
            self.num_records * PARTS - parts.sum()
        )  # what rounding lost, less than a part for each record
        return parts


@lru_cache(maxsize=4)
def _order(draws: Draws, epoch: int) -> tuple[Numbers, Numbers]:
    order = generator(draws.seed, "order", epoch).permutation(draws.num_records)
    if draws.weights is None:
        return order, np.broadcast_to(epoch, order.shape)
    times = draws.times(epoch)
    records = np.repeat(np.arange(draws.num_records), times)
    earlier = np.arange(draws.num_records) - np.repeat(np.cumsum(times) - times, times)
    return records[order], (draws.before(epoch)[records] + earlier)[order]
