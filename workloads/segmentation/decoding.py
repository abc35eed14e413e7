"""From what the network says of a picture to the objects in it: boxes, classes, scores, masks. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from workloads.segmentation.letterbox import Letterbox
from workloads.segmentation.masks import Mask

# The best-scored boxes that suppression looks at: an untrained network scores all of them alike, and there may be 500,000.
MAX_CANDIDATES = 30_000


@dataclass(frozen=True)
class Instances:
    """The objects found in one picture, best first: `boxes` float32 [n, 4] (x1, y1, x2, y2 in its own pixels), `scores`
    float32 [n], `classes` int64 [n], `masks` at its own resolution."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: list[Mask]

    def __len__(self) -> int:
        return len(self.scores)


def decode(
    predictions: np.ndarray,
    protos: np.ndarray,
    geometry: Letterbox,
    *,
    confidence: float,
    iou: float,
    max_detections: int,
    many_labels: bool = False,
) -> Instances:
    """The objects that the graph found in one picture.

    Args:
        predictions: float [4 + classes + masks, anchors]: centre, width, height in the square; scores; coefficients.
        protos: float [masks, rows, columns].
        geometry: how the picture lies in the square.
        confidence: lowest score (exclusive).
        iou: boxes of one class that overlap more than this are one object.
        max_detections: most objects returned.
        many_labels: a box may be an object of each class that scores enough, as mAP wants it; otherwise of the best alone.
    """
    num_classes = len(predictions) - 4 - len(protos)
    anchors, classes, scores = candidates(predictions[4 : 4 + num_classes], confidence, many_labels=many_labels)
    centres, sides = predictions[:2, anchors].T, predictions[2:4, anchors].T
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(np.float32)
    usable = np.isfinite(boxes).all(1)  # a badly quantized graph may say NaN
    anchors, classes, scores, boxes = anchors[usable], classes[usable], scores[usable], boxes[usable]
    kept = suppress(boxes, classes, iou=iou, limit=max_detections)
    own = geometry.to_picture(boxes[kept].reshape(-1, 2, 2)).reshape(-1, 4).astype(np.float32)
    coefficients = predictions[4 + num_classes :, anchors[kept]].T
    return Instances(own, scores[kept], classes[kept], assemble(coefficients, protos, own, geometry))


def candidates(scores: np.ndarray, confidence: float, *, many_labels: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Anchor, class and score (float32) of everything in scores [classes, anchors] above `confidence`, best first."""
    if many_labels:
        classes, anchors = np.nonzero(scores > confidence)
    else:
        # One maximum over all is cheaper than argmax over all; argmax then sees the few that pass.
        anchors = np.flatnonzero(scores.max(0) > confidence)
        classes = scores[:, anchors].argmax(0)
    found = scores[classes, anchors].astype(np.float32)
    order = np.argsort(-found, kind="stable")[:MAX_CANDIDATES]
    return anchors[order], classes[order], found[order]


def suppress(boxes: np.ndarray, classes: np.ndarray, *, iou: float, limit: int) -> np.ndarray:
    """Positions of the boxes [n, 4] (x1, y1, x2, y2; best first) that no better one of their class overlaps more than `iou`.

    Greedy non-maximum suppression, exact, best first, at most `limit`.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.arange(len(boxes))
    kept: list[int] = []
    while len(left) and len(kept) < limit:
        best, left = left[0], left[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[left, :2])
        high = np.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = np.clip(high - low, 0, None).prod(1)
        same = (shared > iou * (areas[best] + areas[left] - shared)) & (classes[left] == classes[best])
        left = left[~same]
    return np.array(kept, np.int64)


def assemble(coefficients: np.ndarray, protos: np.ndarray, boxes: np.ndarray, geometry: Letterbox) -> list[Mask]:
    """Masks at the picture's own resolution, each computed inside its box alone.

    The same numbers as Ultralytics' `process_mask_native`: prototypes are weighted, brought to the picture's grid by
    bilinear interpolation, covered where positive (a sigmoid above one half), cut to the box. Interpolation is linear and
    separable, so here it is two small matrix products for each object.
    """
    num_masks, rows, columns = protos.shape
    logits = (coefficients.astype(np.float32) @ protos.reshape(num_masks, -1).astype(np.float32)).reshape(-1, rows, columns)
    down, across = interpolation(geometry, rows)
    first = np.ceil(boxes[:, :2]).astype(int)
    last = np.maximum(np.minimum(np.ceil(boxes[:, 2:]).astype(int), (geometry.width, geometry.height)), first)
    masks = []
    for logit, (x, y), (right, bottom) in zip(logits, first.tolist(), last.tolist(), strict=True):
        masks.append(Mask(x, y, _inside(logit, down[y:bottom], across[x:right])))
    return masks


def _inside(logit: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Where the interpolated logit [rows, columns] is positive, for these rows of the two interpolation matrices."""
    if not (len(down) and len(across)):
        return np.zeros((len(down), len(across)), bool)
    rows, columns = _reach(down), _reach(across)
    return down[:, rows] @ logit[rows, columns] @ across[:, columns].T > 0


def _reach(weights: np.ndarray) -> slice:
    """The columns of a piece of an interpolation matrix that hold anything; they move to the right from row to row."""
    return slice(int(np.flatnonzero(weights[0])[0]), int(np.flatnonzero(weights[-1])[-1]) + 1)


@lru_cache(maxsize=64)
def interpolation(geometry: Letterbox, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices that bring a map of the square with `cells` x `cells` cells to the picture: [height, cells], [width, cells].

    Where the padding is no whole number of cells, Ultralytics first enlarges the map by the least factor that makes it
    one; for parity so do we.
    """
    stride = geometry.size // cells
    padding = (geometry.size - geometry.inner_height) | (geometry.size - geometry.inner_width)
    factor = stride // math.gcd(stride, padding | padding // 2)
    enlarged, scale = stretched(np.eye(cells), cells * factor), stride // factor
    height = stretched(enlarged[geometry.top // scale : (geometry.top + geometry.inner_height) // scale], geometry.height)
    width = stretched(enlarged[geometry.left // scale : (geometry.left + geometry.inner_width) // scale], geometry.width)
    return height.astype(np.float32), width.astype(np.float32)


def stretched(rows: np.ndarray, wanted: int) -> np.ndarray:
    """`wanted` rows from [n, m] by linear interpolation between cell centres, edges held (torch's align_corners=False)."""
    places = np.clip((np.arange(wanted) + 0.5) * (len(rows) / wanted) - 0.5, 0, len(rows) - 1)
    low = np.floor(places).astype(int)
    share = (places - low)[:, None]
    return rows[low] * (1 - share) + rows[np.minimum(low + 1, len(rows) - 1)] * share
