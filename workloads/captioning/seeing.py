"""A picture as the encoder wants it: scaled, cut and normalised by numpy and Pillow, the same in training and in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def sized(picture: np.ndarray, how: Mapping[str, Any]) -> np.ndarray:
    """uint8 [height, width, 3] RGB to uint8 [size, size, 3]: stretched to the square or, where the processor crops, the middle of the
    picture whose shorter side was made `resize` pixels."""
    from PIL import Image

    size, image = how["size"], Image.fromarray(picture)
    if how["crop"]:
        shorter, edge = min(image.size), how["resize"]
        image = image.resize((edge * image.width // shorter, edge * image.height // shorter), how["resample"])
        left, top = (image.width - size) // 2, (image.height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    elif image.size != (size, size):
        image = image.resize((size, size), how["resample"])
    return np.asarray(image)


def varied(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A part of the picture of at least 80% of its sides, a little lighter or darker; never mirrored: captions say left and right."""
    height, width = picture.shape[:2]
    share = rng.uniform(0.8, 1.0)
    new_height, new_width = max(1, round(height * share)), max(1, round(width * share))
    top, left = int(rng.integers(height - new_height + 1)), int(rng.integers(width - new_width + 1))
    part = picture[top : top + new_height, left : left + new_width].astype(np.float32)
    return np.clip(part * rng.uniform(0.85, 1.15), 0, 255).astype(np.uint8)


def normalized(pictures: np.ndarray, how: Mapping[str, Any]) -> np.ndarray:
    """uint8 [batch, size, size, 3] RGB to float32 [batch, 3, size, size], as the encoder's processor normalises."""
    mean, std = (np.asarray(how[name], np.float32) for name in ("mean", "std"))
    return np.ascontiguousarray(((pictures.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2))
