"""`parse.most`: so many pictures of a download, one from each of as many equal stretches of it, so that every data set, split and
shard has its share; chosen before any picture is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from contracts.records import Rejected
from workloads.captioning.labels.hub import Hub, Part
from workloads.captioning.labels.said import Said

if TYPE_CHECKING:
    from workloads.captioning.labels.formats import DataSet


def chosen(found: Sequence[DataSet], most: int) -> list[np.ndarray]:
    """The places of the choice in each data set, sorted int64: rows of shards, or as `placed` counts what label files say."""
    ends = np.cumsum([_size(one) for one in found])
    every = spread(most, int(ends[-1]))
    starts = [0, *ends[:-1].tolist()]
    return [every[(every >= start) & (every < end)] - start for start, end in zip(starts, ends.tolist(), strict=True)]


def spread(most: int, total: int) -> np.ndarray:
    """`most` places among `total`, the same every time: one at random in each of `most` stretches, for what is in order (every
    tenth picture is for testing) would be chosen unfairly by equal steps. All of them where there are no more."""
    if most >= total:
        return np.arange(total)
    edges = np.linspace(0, total, most + 1).astype(np.int64)
    return edges[:-1] + (np.random.default_rng(most).random(most) * np.diff(edges)).astype(np.int64)


def _size(one: DataSet) -> int:
    if isinstance(one.reader, Hub):
        return one.reader.expected
    return 1 + max((place for place, _ in placed(one.reader.said())), default=-1)


def placed(said: Iterable[Said | Rejected]) -> Iterator[tuple[int, Said | Rejected]]:
    """What label files say, each with its place: a new one for each refused row and for each picture when it is first named.

    Memory: some 100 bytes a picture.
    """
    places: dict[bytes, int] = {}
    count = 0
    for one in said:
        if isinstance(one, Rejected):
            place = count
        else:
            place = places.setdefault(hashlib.blake2b(one.picture.encode(), digest_size=12).digest(), count)
        count += place == count
        yield place, one


def those(said: Iterable[Said | Rejected], places: np.ndarray) -> Iterator[Said | Rejected]:
    """What is said at these places."""
    wanted = set(places.tolist())
    return (one for place, one in placed(said) if place in wanted)


def parts_with(parts: Iterable[Part], places: np.ndarray) -> Iterator[Part]:
    """The parts of shards that hold rows at these places, with those rows alone."""
    start = 0
    for part in parts:
        rows = places[(places >= start) & (places < start + part.size)] - start + part.start
        start += part.size
        if len(rows):
            yield replace(part, rows=frozenset(rows.tolist()), size=len(rows))
