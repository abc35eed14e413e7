"""The official split of an image, as names of folders and files tell it."""

from __future__ import annotations

import re

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
