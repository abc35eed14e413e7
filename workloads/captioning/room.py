"""Whether the disk has room for the features of a data set, asked before hours of encoding and not after."""

from __future__ import annotations

import shutil

from contracts.errors import SlipwayError
from contracts.records import Records
from workloads.captioning.features import Features

# Bytes of a number: float16.
NUMBER = 2


def check_room(features: Features, records: Records) -> None:
    """Say how large the features of the pictures are that have none yet; what an interrupted preparation wrote counts as there.

    Raises:
        SlipwayError: when the disk has less room than that.
    """
    tokens, width = features.shape
    missing = {sha256 for record in records if (sha256 := str(record.inputs["sha256"])) not in features}
    writing = features.folder / "writing.f16"
    needed = len(missing) * tokens * width * NUMBER - (writing.stat().st_size if writing.exists() else 0)
    place = next(folder for folder in (features.folder, *features.folder.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    told = f"features of {len(missing):,} pictures, {tokens} x {width} numbers each, take {needed / 1e9:,.2f} GB"
    if needed > free:
        raise SlipwayError(
            f"{told}, and the disk of {place} has {free / 1e9:,.2f} GB free: make room, take fewer pictures (captioning.parse.most), or "
            "set captioning.prepare.features to false, so that the encoder runs in every step"
        )
    if missing:
        print(f"{told}; {free / 1e9:,.1f} GB are free", flush=True)
