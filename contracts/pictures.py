"""What workloads with pictures share: which files there are, which of them are pictures, how alike two look, how one is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.files import replace_when_complete
from contracts.raw import RawKind

if TYPE_CHECKING:
    import numpy as np

PICTURES = RawKind(
    "pictures", frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jp2", ".ppm", ".pgm"})
)
MIN_CONTRAST = 12
FRAME_MILLISECONDS = 120


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


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Keep a picture, uint8 BGR [height, width, 3], as PNG, or the frames of one that moves, [frames, height, width, 3], as GIF."""
    from PIL import Image

    with replace_when_complete(path) as temporary:
        if picture.ndim == 3:
            Image.fromarray(picture[..., ::-1].copy()).save(temporary, "PNG")
            return
        pictures = [Image.fromarray(frame[..., ::-1].copy()) for frame in picture]
        # One palette for all: with one each, palettes are most of the file.
        palette = Image.fromarray(
            picture[:: max(1, len(picture) // 8), ..., ::-1].reshape(-1, *picture.shape[2:])
        ).quantize()
        first, *others = (one.quantize(palette=palette, dither=Image.Dither.NONE) for one in pictures)
        first.save(temporary, "GIF", save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0)
