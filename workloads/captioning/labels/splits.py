"""The official split of a picture, as a column, a folder or a file name tells it."""

from __future__ import annotations

import re
from typing import Any

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
