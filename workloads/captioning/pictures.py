"""Pictures read as they are trained on and captioned: RGB, upright, on white where they are see-through. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from contracts.errors import SlipwayError
from contracts.raw import RawInput
from workloads.captioning.labels import shards

# 400 MB as RGB: more than any camera takes, less than a bomb unpacks to. Pillow refuses at twice its own limit.
MAX_PIXELS = 1 << 27
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# A picture is no worse for a long description in its file; Pillow's own limits are 1 MB a text and 64 MB in all.
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 26
PngImagePlugin.MAX_TEXT_MEMORY = 1 << 28
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPPED = (5, 6, 7, 8)


def read(root: Path, inputs: Mapping[str, Any]) -> np.ndarray:
    """The picture of a record, uint8 [height, width, 3], RGB; `root` and `inputs` as `content` takes them.

    Raises:
        SlipwayError: when it is missing, cannot be decoded, or is not the one that was parsed.
    """
    return decoded(content(root, inputs), _place(root, inputs))


def content(root: Path, inputs: Mapping[str, Any]) -> bytes:
    """The file that the picture of a record is.

    `inputs` are the record's: "image" is a path below `root`, "row" the row of a parquet or Arrow file, -1 (or none) where
    the path is the picture itself. A row's neighbours stay in memory, so that reading rows in order decodes each part once.

    Raises:
        SlipwayError: when it is missing or is not the one ("sha256") that was parsed.
    """
    path, row = root / inputs["image"], inputs.get("row", -1)
    candidates = [RawInput(path.name, path).read()] if row < 0 else [cell for cell in shards.cells_at(path, row) if cell]
    # Which of several columns of pictures was parsed is not in the record: the hash tells.
    wanted = inputs.get("sha256")
    for data in candidates:
        if wanted in (None, hashlib.sha256(data).hexdigest()):
            return data
    raise SlipwayError(
        f"{_place(root, inputs)} does not hold the picture that was parsed: it has changed since; run parse again"
    )


def decoded(data: bytes, place: str) -> np.ndarray:
    """The picture that `data` are, uint8 [height, width, 3], RGB; `place` is what errors call it.

    Raises:
        SlipwayError: when they are no picture, or one that is cut off, damaged or has more than MAX_PIXELS pixels.
    """
    try:
        with Image.open(BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} are more than {MAX_PIXELS:,} pixels")
            image.load()
            return np.array(on_white(turned(image)))
    except UnidentifiedImageError:
        raise SlipwayError(f"{place} is not a picture that can be decoded ({len(data):,} bytes)") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise anything at all on broken files
        raise SlipwayError(f"{place} cannot be decoded: {error or type(error).__name__}") from None


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a picture that has been loaded; 1 where it has none."""
    return image.getexif().get(ORIENTATION, 1)


def turned(image: Image.Image) -> Image.Image:
    """A picture that has been loaded, upright as its EXIF orientation says."""
    turn = TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def on_white(image: Image.Image) -> Image.Image:
    """A picture in RGB, white where nothing covers its ground."""
    image = eight_bit(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image.convert("RGBA"))
    return ground.convert("RGB")


def eight_bit(image: Image.Image) -> Image.Image:
    """A picture of 16 bits grey in 8, where Pillow's own conversion would make all but the darkest parts white."""
    if image.mode not in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))


def _place(root: Path, inputs: Mapping[str, Any]) -> str:
    path, row = root / inputs["image"], inputs.get("row", -1)
    return str(path) if row < 0 else f"{path} row {row}"
