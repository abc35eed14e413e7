"""Pictures at a glance: size as it will be read, hash of the bytes, whether they are whole, and a likeness."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from contracts.pictures import likeness
from workloads.captioning.labels.said import Unusable
from workloads.captioning.pictures import MAX_PIXELS, SWAPPED, eight_bit, orientation, turned

MAX_BYTES = 1 << 29
MIN_SIDE = 64


@dataclass(frozen=True)
class Picture:
    """Width and height in pixels, EXIF orientation applied; SHA-256 of the bytes, hex; `likeness` 16 bytes, or none."""

    width: int
    height: int
    sha256: str
    likeness: bytes

    @property
    def inputs(self) -> dict[str, Any]:
        """What a record says of it."""
        return {"width": self.width, "height": self.height, "sha256": self.sha256}


def look_at(path: Path) -> Picture:
    """The picture in a file.

    Raises:
        Unusable: when the file cannot be read, is no picture, or one that is cut off, too large or damaged.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Unusable(f"picture is too large: {path.stat().st_size:,} bytes, at most {MAX_BYTES:,} are read")
        return look(path.read_bytes())
    except OSError as error:
        raise Unusable(f"picture cannot be read: {error.strerror}") from None


def look(data: bytes) -> Picture:
    """The picture that `data` are, decoded once, a JPEG at an eighth of its resolution, to see that it is whole.

    Raises:
        Unusable: when they are no picture, or one that is cut off, too large or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata in files that it reads well
            width, height, grey = _decoded(data)
    except (Unusable, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Unusable(f"picture cannot be read: {'not a picture' if data else 'an empty file'}") from None
    except Image.DecompressionBombError:
        raise Unusable(f"picture is too large: more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow's readers raise anything at all on broken files
        raise Unusable(f"picture cannot be read: {error or type(error).__name__}") from None
    return Picture(width, height, hashlib.sha256(data).hexdigest(), likeness(grey))


def _decoded(data: bytes) -> tuple[int, int, np.ndarray]:
    """Width, height and the picture in grey, small where that is cheap, uint8 [h, w]."""
    with Image.open(BytesIO(data)) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError
        image.draft("L", (max(width // 8, MIN_SIDE), max(height // 8, MIN_SIDE)))
        image.load()
        if orientation(image) in SWAPPED:
            width, height = height, width
        return width, height, np.asarray(eight_bit(turned(image)).convert("L"))
