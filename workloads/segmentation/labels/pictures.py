"""Images at a glance: size as OpenCV will show it, whether the file is whole, and a fingerprint for near-duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from contracts.pictures import likeness
from workloads.segmentation.labels.drawn import Unusable

ORIENTATION = 0x0112
SWAPPED = (5, 6, 7, 8)
MIN_SIDE = 64


@dataclass(frozen=True)
class Picture:
    """Width and height in pixels as `cv2.imread` gives them, EXIF orientation applied; `likeness` 16 bytes, or none."""

    width: int
    height: int
    orientation: int
    likeness: bytes


def look(path: Path) -> Picture:
    """Size from the header, and one pass over the file, an eighth of its resolution in a JPEG, to see that it is whole.

    Pillow rather than OpenCV decodes here: OpenCV returns half a picture from a truncated JPEG and says nothing.

    Raises:
        Unusable: when the file is missing, empty, cut off, no image, or one that OpenCV cannot open.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            orientation = image.getexif().get(ORIENTATION, 1)
            if image.format == "TIFF" and orientation in SWAPPED:
                raise Unusable("image cannot be read: OpenCV does not open a TIFF with a turned EXIF orientation")
            image.draft("L", (max(width // 8, MIN_SIDE), max(height // 8, MIN_SIDE)))
            image.load()
            upright = image if orientation == 1 else ImageOps.exif_transpose(image)
            small = np.asarray(upright if upright.mode == "L" else upright.convert("L"))
    except Unusable:
        raise
    except FileNotFoundError:
        raise Unusable("image not found: no file of that name in the download") from None
    except UnidentifiedImageError:
        raise Unusable(f"image cannot be read: {'an empty file' if not path.stat().st_size else 'not an image'}") from None
    except Exception as error:  # Pillow's readers raise anything at all on broken files
        raise Unusable(f"image cannot be read: {error or type(error).__name__}") from None
    if orientation in SWAPPED:
        width, height = height, width
    return Picture(width, height, orientation, likeness(small))
