"""Pictures for people: objects as coloured veils with an outline, class and confidence written beside them. No torch."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from workloads.segmentation.masks import Mask

FONT = cv2.FONT_HERSHEY_SIMPLEX
LEAST_SIDE, GALLERY_SIDE = 384, 640
VEIL = 0.35


@dataclass(frozen=True)
class Drawn:
    """An object to draw: its mask at the picture's own resolution, its words, the number its colour follows from."""

    mask: Mask
    words: str
    colour: int


def overlay(picture: np.ndarray, objects: Sequence[Drawn], *, most: int | None = None) -> np.ndarray:
    """`picture` (uint8 [height, width, 3], BGR) with the objects on it, the last drawn first, so that the first lie on top.

    A picture below 384 pixels is enlarged by a whole factor, so that words can be read; `most` bounds the longer side.
    """
    scale = scale_of(picture, most)
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    canvas = (
        cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        if scale != 1
        else picture.copy()
    )
    pen = max(2, round(max(size) / 400))
    for one in reversed(objects):
        veil(canvas, one.mask, colour_of(one.colour), scale, pen)
    for one in reversed(objects):
        write(canvas, one.words, (one.mask.x * scale, one.mask.y * scale), colour_of(one.colour))
    return canvas


def scale_of(picture: np.ndarray, most: int | None) -> float:
    """How much larger or smaller the picture is drawn."""
    longer = max(picture.shape[:2])
    enlarged = -(-LEAST_SIDE // longer) if longer < LEAST_SIDE else 1
    return most / longer if most is not None and longer > most else enlarged


def veil(canvas: np.ndarray, mask: Mask, colour: tuple[int, int, int], scale: float, pen: int) -> None:
    """Tint what the mask covers and draw its outline, in place; `scale` is canvas pixels for a pixel of the mask."""
    if not mask.window.size:
        return
    x, y = round(mask.x * scale), round(mask.y * scale)
    right, bottom = round((mask.x + mask.window.shape[1]) * scale), round((mask.y + mask.window.shape[0]) * scale)
    right, bottom = min(max(right, x + 1), canvas.shape[1]), min(max(bottom, y + 1), canvas.shape[0])
    part = canvas[y:bottom, x:right]
    if not part.size:
        return
    covered = cv2.resize(mask.window.astype(np.uint8), (right - x, bottom - y), interpolation=cv2.INTER_NEAREST)
    inside = covered.astype(bool)
    part[inside] = (part[inside] * (1 - VEIL) + np.array(colour) * VEIL).astype(np.uint8)
    outlines, _ = cv2.findContours(covered, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
    cv2.drawContours(canvas, outlines, -1, colour, pen, cv2.LINE_AA)


def write(canvas: np.ndarray, words: str, corner: tuple[float, float], colour: tuple[int, int, int]) -> None:
    """Write on a ground of `colour`, just above `corner` (x, y), moved so that all of it can be seen."""
    if not words:
        return
    height = max(canvas.shape[:2])
    size, pen = max(0.4, height / 1400), max(1, round(height / 900))
    (width, tall), below = cv2.getTextSize(words, FONT, size, pen)
    x = int(np.clip(corner[0], 0, max(canvas.shape[1] - width - 4, 0)))
    y = int(np.clip(corner[1] - below - 2, tall + 2, max(canvas.shape[0] - below - 2, tall + 2)))
    cv2.rectangle(canvas, (x, y - tall - 2), (x + width + 4, y + below), colour, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(colour, (0.114, 0.587, 0.299)) > 128 else (255, 255, 255)
    cv2.putText(canvas, words, (x + 2, y), FONT, size, ink, pen, cv2.LINE_AA)


def beside(left: np.ndarray, right: np.ndarray, titles: tuple[str, str]) -> np.ndarray:
    """Two pictures of one size side by side, each with its title above."""
    bar = np.full((28, left.shape[1], 3), 255, np.uint8)
    columns = []
    for picture, title in zip((left, right), titles, strict=True):
        head = bar.copy()
        cv2.putText(head, title, (6, 20), FONT, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
        columns.append(np.concatenate([head, picture]))
    gap = np.full((len(columns[0]), 6, 3), 255, np.uint8)
    return np.concatenate([columns[0], gap, columns[1]], axis=1)


def colour_of(number: int) -> tuple[int, int, int]:
    """BGR; neighbours in number are far apart in hue (steps of the golden ratio)."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + number * 0.61803398875) % 1, 0.85, 0.75 + 0.25 * (number % 2))
    return round(255 * blue), round(255 * green), round(255 * red)
