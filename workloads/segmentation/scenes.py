"""The embedded data set: scenes of real handwritten digits, labelled in the layout of a Labelbox export."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts.progress import track

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZE = 128
SEED = 2718
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# scikit-learn keeps the digits in the order of their writers, so that ranges of it do not share a hand.
WRITERS = {"train": slice(0, 1400), "val": slice(1400, 1598), "test": slice(1598, 1797)}
SHARES = {"train": 0.75, "val": 0.10, "test": 0.15}
SUPERSAMPLED = 4


@dataclass(frozen=True)
class Digit:
    """A digit in a scene. `alpha` float32 [h, w] is its ink at `corner` (x, y); `polygon` [n, 2] its outline in pixels."""

    name: str
    corner: tuple[int, int]
    alpha: NDArray[np.float32]
    polygon: NDArray[np.float64]


def write_scenes(raw: Path, num: int) -> None:
    """Write `num` scenes to `raw`/images/<split>/ and their polygons to `raw`/labels.csv; the same files every time.

    The handwriting of one split never appears in another (the digits are those of scikit-learn's `load_digits`).
    """
    import cv2
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    plan = [(split, index) for split, count in _counts(num).items() for index in range(count)]
    with (raw / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["External ID", "Label"])
        for split, index in track(plan, "drawing scenes of handwritten digits"):
            rng = np.random.default_rng([SEED, list(WRITERS).index(split), index])
            writers = WRITERS[split]
            picture, drawn = draw_scene(digits.images[writers], digits.target[writers], rng)
            name = f"{split}/scene_{index:05d}.jpg"
            (raw / "images" / split).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(raw / "images" / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
            objects = [
                {"value": digit.name, "polygon": [{"x": round(x, 2), "y": round(y, 2)} for x, y in digit.polygon.tolist()]}
                for digit in drawn
            ]
            table.writerow([name, json.dumps({"objects": objects})])


def _counts(num: int) -> dict[str, int]:
    """Scenes of each split; every split has one at least, where `num` allows."""
    val, test = (max(1, round(num * SHARES[split])) for split in ("val", "test"))
    return {"train": max(num - val - test, 1), "val": val, "test": test}


def draw_scene(images: NDArray, labels: NDArray, rng: np.random.Generator) -> tuple[NDArray[np.uint8], list[Digit]]:
    """One picture (uint8 [SIZE, SIZE, 3], BGR) with 1 to 6 digits that do not touch, and the digits."""
    picture = _background(rng)
    taken = np.zeros((SIZE, SIZE), bool)
    drawn: list[Digit] = []
    for _ in range(rng.integers(1, 7)):
        which = int(rng.integers(len(images)))
        digit = _place(images[which], NAMES[int(labels[which])], taken, rng)
        if digit is None:
            continue
        (x, y), (height, width) = digit.corner, digit.alpha.shape
        window = picture[y : y + height, x : x + width]
        ink = _ink(window.mean((0, 1)), rng)
        window += digit.alpha[..., None] * (ink - window)
        taken[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1] |= _padded(digit.alpha > 0.1, y, x)
        drawn.append(digit)
    picture += rng.normal(0, rng.uniform(1, 6), picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8), drawn


def _background(rng: np.random.Generator) -> NDArray[np.float32]:
    """A textured ground: blotches of several sizes between two colours, float32 [SIZE, SIZE, 3]."""
    import cv2

    texture = np.zeros((SIZE, SIZE), np.float32)
    for cells in (3, 8, 24):
        blotches = rng.random((cells, cells), dtype=np.float32) - 0.5
        texture += cv2.resize(blotches, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) * rng.uniform(0.3, 1)
    low, high = np.sort(rng.uniform(20, 235, (2, 3)), axis=0)
    middle, reach = (low + high) / 2, np.minimum((high - low) / 2, 45)
    return (middle + texture[..., None] * reach).astype(np.float32)


def _ink(ground: NDArray, rng: np.random.Generator) -> NDArray[np.float32]:
    """A colour that stands out from the ground: 90 grey levels away in at least one channel."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.abs(colour - ground).max() > 90 and abs(float((colour - ground).mean())) > 35:
            return colour.astype(np.float32)


def _place(image: NDArray, name: str, taken: NDArray[np.bool_], rng: np.random.Generator) -> Digit | None:
    """The digit, scaled and turned, at a free place; None where 20 tries found none."""
    ink = _turned(image, height=rng.uniform(0.20, 0.36) * SIZE, degrees=rng.uniform(-20, 20))
    alpha = np.clip(_shrunk(ink), 0, 1)
    height, width = alpha.shape
    for _ in range(20):
        x, y = int(rng.integers(0, SIZE - width + 1)), int(rng.integers(0, SIZE - height + 1))
        if not (taken[y : y + height, x : x + width] & (alpha > 0.1)).any():
            outline = _outline(ink > 0.5)
            return Digit(name, (x, y), alpha, (outline + 0.5) / SUPERSAMPLED + (x, y))
    return None


def _turned(image: NDArray, *, height: float, degrees: float) -> NDArray[np.float32]:
    """The digit's ink (0 to 1) at SUPERSAMPLED resolution, cut to what is inked, its sides multiples of SUPERSAMPLED."""
    import cv2

    rows = np.flatnonzero((image > 4).any(1))
    scale = height * SUPERSAMPLED / (rows[-1] - rows[0] + 1)
    side = int(np.ceil(8 * scale * 1.5))
    matrix = cv2.getRotationMatrix2D((3.5, 3.5), degrees, scale)
    matrix[:, 2] += side / 2 - 3.5
    ink = cv2.warpAffine(image.astype(np.float32) / 16, matrix, (side, side), flags=cv2.INTER_CUBIC)
    ink = np.clip((ink - 0.3) / 0.3, 0, 1)
    rows, columns = np.flatnonzero((ink > 0).any(1)), np.flatnonzero((ink > 0).any(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.pad(ink, [(0, -ink.shape[0] % SUPERSAMPLED), (0, -ink.shape[1] % SUPERSAMPLED)]).astype(np.float32)


def _shrunk(ink: NDArray[np.float32]) -> NDArray[np.float32]:
    """`ink` averaged down to the picture's own pixels."""
    height, width = (side // SUPERSAMPLED for side in ink.shape)
    return ink.reshape(height, SUPERSAMPLED, width, SUPERSAMPLED).mean((1, 3))


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """One closed line [n, 2] (x, y) round everything that is set: holes and loose parts are joined by bridges without width."""
    import cv2

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    simple = (cv2.approxPolyDP(contour, 1.0, closed=True)[:, 0, :] for contour in contours)
    rings = sorted((ring.astype(float) for ring in simple if len(ring) > 2), key=len, reverse=True)
    line = rings[0]
    for ring in rings[1:]:
        distance = np.square(line[:, None] - ring[None]).sum(-1)
        here, there = np.unravel_index(int(distance.argmin()), distance.shape)
        loop = np.roll(ring, -int(there), axis=0)
        line = np.concatenate([line[: here + 1], loop, loop[:1], line[here:]])
    return line


def _padded(mask: NDArray[np.bool_], y: int, x: int) -> NDArray[np.bool_]:
    """`mask` grown by a pixel, cut where it would leave the picture."""
    import cv2

    grown = cv2.dilate(np.pad(mask, 1).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    top, left = max(1 - y, 0), max(1 - x, 0)
    return grown[top : top + SIZE - max(y - 1, 0), left : left + SIZE - max(x - 1, 0)]
