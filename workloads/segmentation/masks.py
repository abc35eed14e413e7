"""Masks as windows, run lengths and outlines: each form leads to the others without loss. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from faster_coco_eval import mask as coco


@dataclass(frozen=True)
class Mask:
    """What one object covers: `window` bool [h, w], whose upper left pixel is at `x`, `y` of a picture; nothing outside it.

    A hundred objects of a 12-megapixel photograph fit in memory this way; as whole pictures they do not.
    """

    x: int
    y: int
    window: np.ndarray

    @property
    def area(self) -> int:
        """Pixels covered."""
        return int(np.count_nonzero(self.window))

    def full(self, height: int, width: int) -> np.ndarray:
        """The mask as a whole picture, bool [height, width]."""
        picture = np.zeros((height, width), bool)
        rows, columns = self.window.shape
        picture[self.y : self.y + rows, self.x : self.x + columns] = self.window
        return picture

    def counts(self, height: int, width: int) -> str:
        """COCO's compressed run lengths (down the columns) in a picture of that size."""
        return coco.frPyObjects({"size": [height, width], "counts": self._runs(height, width)}, height, width)[
            "counts"
        ].decode()  # pyright: ignore

    def _runs(self, height: int, width: int) -> list[int]:
        """Lengths of the runs down the columns of the picture, in turn empty and covered."""
        rows, columns = self.window.shape
        # A row of nothing between the columns makes every run start and end within one column.
        fenced = np.zeros(1 + columns * (rows + 1), bool)
        fenced[1:].reshape(columns, rows + 1)[:, :rows] = self.window.T
        column, row = np.divmod(np.flatnonzero(fenced[1:] != fenced[:-1]), rows + 1)
        places = (self.x + column) * height + self.y + row
        if rows == height:  # here a run may go on at the top of the next column: its end and its start are one place
            goes_on = np.flatnonzero(places[1:-1:2] == places[2::2])
            places = np.delete(places, np.concatenate([2 * goes_on + 1, 2 * goes_on + 2]))
        turns = [0, *places.tolist()]
        if turns[-1] < height * width or not len(places):
            turns.append(height * width)
        return [end - start for start, end in pairwise(turns)]

    def polygons(self) -> list[list[float]]:
        """Outlines x1, y1, x2, y2... through the pixels at the edge, one for each part; holes are joined by a bridge.

        Filled again by `filled`, they give the same mask.
        """
        contours, hierarchy = cv2.findContours(self.window.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        if not contours:
            return []
        rings = [contour[:, 0, :] + (self.x, self.y) for contour in contours]
        parents = hierarchy[0][:, 3].tolist()
        outlines = []
        for part, parent in enumerate(parents):
            if parent < 0:
                holes = [ring for ring, above in zip(rings, parents, strict=True) if above == part]
                outlines.append(bridged(rings[part], holes).astype(float).ravel().tolist())
        return outlines


def filled(polygons: Iterable[Sequence[float]], height: int, width: int) -> Mask:
    """The pixels that outlines x1, y1, x2, y2... cover together in a picture of that size, each by the even-odd rule.

    Corners are cut to whole pixels and the outline itself belongs to the mask. That is how Ultralytics makes the masks that
    a network is trained on; COCO's own rule gives objects about half a pixel smaller all round.
    """
    rings = [np.asarray(polygon, np.float64).reshape(-1, 2).astype(np.int32) for polygon in polygons]
    rings = [ring for ring in rings if len(ring)]
    corners = np.concatenate(rings) if rings else np.zeros((1, 2), np.int32) - 1
    x, y = np.clip(corners.min(0), 0, (width, height)).tolist()
    right, bottom = np.clip(corners.max(0) + 1, (x, y), (width, height)).tolist()
    window = np.zeros((bottom - y, right - x), np.uint8)
    for ring in rings if window.size else []:
        cv2.fillPoly(window, [ring], 1, offset=(-x, -y))
    return Mask(x, y, window.astype(bool))


def bridged(outline: np.ndarray, holes: Iterable[np.ndarray]) -> np.ndarray:
    """One closed line [n, 2] that runs round `outline` and, over bridges without width, round each hole."""
    for hole in holes:
        distance = np.square(outline[:, None].astype(np.int64) - hole[None]).sum(-1)
        here, there = np.unravel_index(int(distance.argmin()), distance.shape)
        loop = np.roll(hole, -int(there), axis=0)
        outline = np.concatenate([outline[: here + 1], loop, loop[:1], outline[here:]])
    return outline


def overlap(counts: Sequence[str], others: Sequence[str], height: int, width: int) -> np.ndarray:
    """Intersection over union of compressed masks of a picture, float [len(counts), len(others)]."""
    if not counts or not others:
        return np.zeros((len(counts), len(others)))
    first, second = (_objects(one, height, width) for one in (counts, others))
    return np.asarray(coco.iou(first, second, [0] * len(second))).reshape(len(first), len(second))


def box_overlap(boxes: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> np.ndarray:
    """Intersection over union of boxes (x, y, width, height), float [len(boxes), len(others)]."""
    if not boxes or not others:
        return np.zeros((len(boxes), len(others)))
    first, second = (np.asarray(one, np.float64) for one in (boxes, others))
    return np.asarray(coco.iou(first, second, [0] * len(second))).reshape(len(first), len(second))


def _objects(counts: Sequence[str], height: int, width: int) -> list[dict[str, Any]]:
    return [{"size": [height, width], "counts": one} for one in counts]
