"""Examples that look alike and stand in different splits: what was learnt by heart would be scored as if it were new."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contracts.records import SPLITS

BYTES = 16
# Two 128-bit fingerprints that differ in at most this many bits are alike; with one band more than that, at least one
# band of them is equal (the pigeonhole principle), so that only examples with an equal band need comparing.
MAX_DISTANCE = 7
BANDS = 8
PAIRS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Alike:
    """An example, the one in another split that it looks most like, and in how many of 128 bits they differ."""

    key: str
    split: str
    other: str
    other_split: str
    distance: int


class Likenesses:
    """Fingerprints collected while records go by. Memory: 16 bytes and the key of each record that has one."""

    def __init__(self) -> None:
        self.keys: dict[str, list[str]] = {split: [] for split in SPLITS}
        self.bits: dict[str, array[int]] = {split: array("B") for split in SPLITS}

    def add(self, key: str, split: str, likeness: bytes) -> None:
        if len(likeness) == BYTES:
            self.keys[split].append(key)
            self.bits[split].frombytes(likeness)

    def __len__(self) -> int:
        return sum(map(len, self.keys.values()))

    def across_splits(self) -> list[Alike]:
        """For each example of val and test, the nearest of the splits before it that is alike; at most one a split."""
        found: list[Alike] = []
        for split, others in (("val", ("train",)), ("test", ("train", "val"))):
            for other in others:
                nearest, distances = nearest_alike(self._rows(split), self._rows(other))
                for index in np.flatnonzero(nearest >= 0):
                    match = self.keys[other][int(nearest[index])]
                    found.append(Alike(self.keys[split][index], split, match, other, int(distances[index])))
        return found

    def _rows(self, split: str) -> NDArray[np.uint8]:
        return np.frombuffer(self.bits[split].tobytes(), np.uint8).reshape(-1, BYTES)


def nearest_alike(wanted: NDArray[np.uint8], known: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row of `wanted` [n, 16] the nearest of `known` [m, 16] within MAX_DISTANCE bits (-1: none), and how far."""
    nearest, distances = np.full(len(wanted), -1, np.int64), np.full(len(wanted), MAX_DISTANCE + 1, np.int64)
    if not len(wanted) or not len(known):
        return nearest, distances
    known, originals = np.unique(known, axis=0, return_index=True)
    left, right = (np.ascontiguousarray(rows).view(np.uint64) for rows in (wanted, known))
    for band in range(BANDS):
        mine, theirs = (np.ascontiguousarray(rows).view(np.uint16)[:, band] for rows in (wanted, known))
        order = np.argsort(theirs, kind="stable")
        low, high = (np.searchsorted(theirs[order], mine, side) for side in ("left", "right"))
        for rows, columns in _candidates(low, high, order):
            bits = np.bitwise_count(left[rows] ^ right[columns]).sum(1).astype(np.int64)
            better = bits < distances[rows]
            rows, columns, bits = rows[better], columns[better], bits[better]
            best = np.lexsort((originals[columns], bits, rows))
            rows, first = np.unique(rows[best], return_index=True)
            nearest[rows], distances[rows] = originals[columns[best]][first], bits[best][first]
    return nearest, distances


def _candidates(low: NDArray, high: NDArray, order: NDArray) -> Iterator[tuple[NDArray, NDArray]]:
    """Pairs (row, column) for the ranges low to high of `order`, PAIRS_AT_ONCE or one row's at a time."""
    counts = high - low
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = ends[start] - counts[start]
        stop = max(int(np.searchsorted(ends, before + PAIRS_AT_ONCE, "right")), start + 1)
        sizes = counts[start:stop]
        rows = np.repeat(np.arange(start, stop), sizes)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        if len(rows):
            yield rows, order[low[rows] + within]
        start = stop


def write_alike(path: Path, found: list[Alike]) -> None:
    """The examples as a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["key", "split", "alike", "alike_split", "bits_of_128"])
        table.writerows([one.key, one.split, one.other, one.other_split, one.distance] for one in found)
