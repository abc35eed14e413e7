"""COCO's run-length masks, decoded to outlines."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from workloads.segmentation.labels.drawn import Unusable
from workloads.segmentation.labels.geometry import keyhole

MAX_PIXELS = 1 << 28


def outlines(segmentation: dict[str, Any]) -> list[list[float]]:
    """The outlines of a mask {"counts": text or list, "size": [height, width]}, flat x1, y1, ..., holes cut open.

    Corners are pixel centres as `cv2.findContours` gives them, so that `cv2.fillPoly` draws the same mask again.

    Raises:
        Unusable: when the runs are broken or nothing is set.
    """
    mask = decoded(segmentation)
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    found = []
    for index, contour in enumerate(contours):
        if hierarchy[0][index][3] >= 0 or len(contour) < 3:
            continue
        holes = [contours[child][:, 0] for child in _children(hierarchy[0], index) if len(contours[child]) > 2]
        ring = keyhole(shapely.Polygon(contour[:, 0], holes)) if holes else contour[:, 0]
        found.append(ring.ravel().tolist())
    if not found:
        raise Unusable("no area: the mask is empty or thinner than two pixels")
    return found


def decoded(segmentation: dict[str, Any]) -> NDArray[np.uint8]:
    """The mask, uint8 [height, width]; runs go down the columns, unset first (COCO's own definition)."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise Unusable(f"broken run-length mask: size is {size!r}")
    height, width = size
    if height * width > MAX_PIXELS:
        raise Unusable(f"broken run-length mask: {height} x {width} is more than an image")
    runs = _numbers(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or any(type(run) is not int or not 0 <= run <= height * width for run in runs):
        raise Unusable("broken run-length mask: counts are not lengths")
    if sum(runs) != height * width:
        raise Unusable(f"broken run-length mask: its runs cover {sum(runs)} of {height * width} pixels")
    values = np.repeat(np.arange(len(runs), dtype=np.int64) % 2, runs).astype(np.uint8)
    return np.ascontiguousarray(values.reshape(width, height).T)


def _numbers(text: str) -> list[int]:
    """Runs from COCO's compressed text: groups of five bits with a sign; from the fourth on, differences to two before."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise Unusable("broken run-length mask: its text is not COCO's")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            value -= (1 << shift) if bits & 0x10 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise Unusable("broken run-length mask: its text is cut off")
    return runs


def _children(hierarchy: NDArray[np.int32], index: int) -> list[int]:
    children, child = [], int(hierarchy[index][2])
    while child >= 0:
        children.append(child)
        child = int(hierarchy[child][0])
    return children
