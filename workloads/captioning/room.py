"""Whether the disk has room for the features of a data set, asked before hours of encoding and not after."""

from __future__ import annotations

import shutil
from pathlib import Path

from contracts.errors import SlipwayError


def check_room(folder: Path, *, num: int, shape: tuple[int, ...], needed: int) -> None:
    """Say how large the features of so many new pictures are, `shape` numbers each, that go to `folder`: `needed` bytes, without
    what an interrupted preparation wrote.

    Raises:
        SlipwayError: when the disk has less room than that.
    """
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    tokens, width = shape
    told = f"features of {num:,} pictures, {tokens} x {width} numbers each, take {needed / 1e9:,.2f} GB"
    if needed > free:
        raise SlipwayError(
            f"{told}, and the disk of {place} has {free / 1e9:,.2f} GB free: make room, take fewer pictures (captioning.parse.most), or "
            "set captioning.prepare.features to false, so that the encoder runs in every step"
        )
    print(f"{told}; {free / 1e9:,.1f} GB are free", flush=True)
