"""The official split of a picture, as a column, a folder or a file name tells it, and what to make of missing ones."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from contracts.records import split_of
from workloads.captioning.labels.said import Unusable

# restval is what Karpathy's division of COCO calls the part of val that everybody trains on.
WORDS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_WORD = "|".join(sorted(WORDS, key=len, reverse=True))
_FOLDER = re.compile(rf"(?:partial-)?({_WORD})[-_ ]?(?:\d*|set)", re.IGNORECASE)
_IN_NAME = re.compile(rf"(?<![a-z])({_WORD})(?![a-z])", re.IGNORECASE)


def split_in_path(path: str) -> str | None:
    """The split that the nearest folder above a file names: train/x.png, images/val2017/x.png."""
    for folder in reversed(path.split("/")[:-1]):
        if match := _FOLDER.fullmatch(folder):
            return WORDS[match[1].lower()]
    return None


def split_in_name(path: str) -> str | None:
    """The split that a label file is named after, last in its name or in a folder above it: captions_train2017.json,
    alt-text-validation-test-00000-of-00002.parquet (test)."""
    found = _IN_NAME.findall(path.rsplit("/", 1)[-1])
    return WORDS[found[-1].lower()] if found else split_in_path(path)


def split_named(value: Any) -> str | None:
    """The split that a column names; None where it names none.

    Raises:
        Unusable: when it is a word that no split has.
    """
    if value is None or value != value or (isinstance(value, str) and not value.strip()):  # NaN is not itself
        return None
    found = WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if found is None:
        raise Unusable(f"unknown split: {value!r} is none of {', '.join(WORDS)}")
    return found


@dataclass(frozen=True)
class Division:
    """The splits that a data set names, and the shares of train, val and test to draw where it names too few.

    A data set with one split only has none; one with train and test gets a val drawn from its train.
    """

    official: frozenset[str]
    shares: tuple[float, float, float]

    @classmethod
    def of(cls, splits: Iterable[str | None], shares: tuple[float, float, float]) -> Self:
        return cls(frozenset(split for split in splits if split), shares)

    @property
    def note(self) -> str:
        """What was made of missing splits, in words; nothing where none is missing."""
        if len(self.official) == 1:
            return f"all pictures are in {next(iter(self.official))!r}, which is no division: train, val and test are drawn"
        if self.official == {"train", "test"}:
            return f"there is no val split: {self._val:.0%} of train is drawn for it"
        return ""

    def settle(self, split: str | None, name: str) -> str | None:
        """The split of the picture called `name`, whose official one is `split`; None leaves it to the hash of its name."""
        if len(self.official) == 1:
            return None
        if split == "train" and self.official == {"train", "test"}:
            return split_of(name, (1 - self._val, self._val, 0.0))
        return split

    @property
    def _val(self) -> float:
        return self.shares[1] / (self.shares[0] + self.shares[1]) if self.shares[1] else 0.0
