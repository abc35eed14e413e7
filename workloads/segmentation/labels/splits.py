"""The official split of an image, as names of folders and files tell it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from contracts.records import split_of

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_WORD = "|".join(sorted(WORDS, key=len, reverse=True))
_FOLDER = re.compile(rf"({_WORD})[-_ ]?(?:\d*|set)", re.IGNORECASE)
_IN_NAME = re.compile(rf"(?<![a-z])({_WORD})(?![a-z])", re.IGNORECASE)


def split_in_path(path: str) -> str | None:
    """The split that the nearest folder above a file names: train/x.png, images/val2017/x.png."""
    for folder in reversed(path.split("/")[:-1]):
        if match := _FOLDER.fullmatch(folder):
            return WORDS[match[1].lower()]
    return None


def split_in_name(path: str) -> str | None:
    """The split that a label file is named after: annotations/instances_train2017.json."""
    match = _IN_NAME.search(path.rsplit("/", 1)[-1])
    return WORDS[match[1].lower()] if match else split_in_path(path)


def completed(official: set[str], shares: Sequence[float]) -> tuple[Callable[[str | None, str], str | None], str]:
    """What to make of the official splits when some are missing: a function of (official split, group or key), and why.

    A data set that names one split only has none; one with train and test gets a val drawn from its train.
    """
    if len(official) == 1:
        only = next(iter(official))
        return (lambda split, name: None), f"all images are in {only!r}, which is no division: train, val and test are drawn"
    if official == {"train", "test"}:
        val = shares[1] / (shares[0] + shares[1]) if shares[1] else 0.0
        drawn = (1 - val, val, 0.0)
        return (
            lambda split, name: split_of(name, drawn) if split == "train" else split
        ), f"there is no val split: {val:.0%} of train is drawn for it"
    return (lambda split, name: split), ""
