"""What workloads with pictures share: which files there are, which of them are pictures, and how alike two look."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.raw import RawKind

if TYPE_CHECKING:
    import numpy as np

PICTURES = RawKind(
    "pictures", frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jp2", ".ppm", ".pgm"})
)
MIN_CONTRAST = 12


def walk(root: Path) -> Iterator[str]:
    """Every file below `root`, sorted, as posix paths relative to it; hidden ones and macOS' shadow files left out."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back up would be walked for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(one for one in folders if not one.startswith(".") and one != "__MACOSX")
        above = Path(folder).relative_to(root).as_posix()
        yield from (one if above == "." else f"{above}/{one}" for one in sorted(files) if not one.startswith("."))


def likeness(grey: np.ndarray) -> bytes:
    """128 bits: is each cell of an 8 x 8 grid brighter than its right, and than its lower, neighbour (dHash both ways).

    `grey` is uint8 [height, width]. Pictures without contrast give no bits: they would all be alike.
    """
    import cv2
    import numpy as np

    if int(grey.max()) - int(grey.min()) < MIN_CONTRAST:
        return b""
    cells = cv2.resize(grey.astype(np.float32), (9, 9), interpolation=cv2.INTER_AREA)
    across, down = cells[:8, :8] > cells[:8, 1:], cells[:8, :8] > cells[1:, :8]
    return np.packbits(np.stack([across, down])).tobytes()
