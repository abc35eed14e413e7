"""What to make of the splits that a data set names, where some are missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from contracts.records import split_of


@dataclass(frozen=True)
class Division:
    """The splits that a data set names, and the shares of train, val and test to draw where it names too few.

    A data set with one split only has none; one with train and test gets a val drawn from its train.
    """

    official: frozenset[str]
    shares: tuple[float, float, float]
    things: str = "pictures"

    @classmethod
    def of(cls, splits: Iterable[str | None], shares: tuple[float, float, float], *, things: str = "pictures") -> Self:
        """`things` is what the note calls the examples."""
        return cls(frozenset(split for split in splits if split), shares, things)

    @property
    def note(self) -> str:
        """What was made of missing splits, in words; nothing where none is missing."""
        if len(self.official) == 1:
            return f"all {self.things} are in {next(iter(self.official))!r}, which is no division: train, val and test are drawn"
        if self.official == {"train", "test"}:
            return f"there is no val split: {self._val:.0%} of train is drawn for it"
        return ""

    def settle(self, split: str | None, name: str) -> str | None:
        """The split of the example, or group, called `name`, whose official one is `split`; None leaves it to the hash of its name."""
        if len(self.official) == 1:
            return None
        if split == "train" and self.official == {"train", "test"}:
            return split_of(name, (1 - self._val, self._val, 0.0))
        return split

    @property
    def _val(self) -> float:
        return self.shares[1] / (self.shares[0] + self.shares[1]) if self.shares[1] else 0.0
