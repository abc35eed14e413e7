"""The embedded data set: one or two handwritten digits in colour on a dark ground, with captions that say what is where."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts.progress import track
from workloads.captioning.phrases import COLOURS, DIGITS, HELD_OUT, Thing, describe, phrasings

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZE, CELL, CELLS = 48, 16, 3
SEED = 3141
# How far the pictures that the base encoder learns from bend the handwriting.
SWAY = 0.2
# scikit-learn keeps the digits in the order of their writers, so that ranges of it do not share a hand.
WRITERS = {"train": slice(0, 1400), "val": slice(1400, 1598), "test": slice(1598, 1797)}
SHARES = {"train": 0.8, "val": 0.08, "test": 0.12}
# Inks as red, green, blue, 0 to 1; each is drawn a little lighter, darker or off.
INKS = {
    "red": (0.95, 0.15, 0.15),
    "green": (0.15, 0.8, 0.2),
    "blue": (0.2, 0.35, 1.0),
    "yellow": (0.95, 0.9, 0.15),
    "purple": (0.75, 0.2, 0.9),
    "white": (0.95, 0.95, 0.95),
}


@dataclass(frozen=True)
class Placed:
    """A thing in a scene and the cell (row, column) that it stands in."""

    thing: Thing
    cell: tuple[int, int]


@dataclass(frozen=True)
class Hand:
    """The handwriting of one split: images float32 [n, 8, 8], ink 0 to 1, and for each digit which of them are it."""

    images: NDArray[np.float32]
    of_digit: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, split: str) -> Hand:
        """The digits (scikit-learn's `load_digits`) whose writers belong to a split."""
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        targets = digits.target[WRITERS[split]]
        images = (digits.images[WRITERS[split]] / 16).astype(np.float32)
        return cls(images, tuple(np.flatnonzero(targets == digit) for digit in range(len(DIGITS))))


def write_scenes(raw: Path, num: int) -> None:
    """Write `num` scenes to `raw`/images/<split>/ and their captions to `raw`/metadata.jsonl; the same files every time.

    The handwriting of one split never appears in another. Train and val hold no pair of digit and colour of HELD_OUT; of the
    scenes of test every second one holds one.
    """
    import cv2

    with (raw / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for split, count in _counts(num).items():
            hand, folder = Hand.of(split), raw / "images" / split
            folder.mkdir(parents=True, exist_ok=True)
            for index in track(range(count), f"drawing {split} scenes of coloured digits"):
                rng = np.random.default_rng([SEED, list(WRITERS).index(split), index])
                scene = compose(rng, new_pairs=split == "test" and index % 2 == 1)
                name = f"images/{split}/scene_{index:05d}.png"
                cv2.imwrite(str(raw / name), draw(scene, hand, rng)[..., ::-1])
                things = [one.thing for one in scene]
                relation = relation_of(scene)
                row = {"file_name": name, "split": split, "text": phrasings(things, relation)}
                file.write(json.dumps({**row, "scene": describe(things, relation)}) + "\n")


def _counts(num: int) -> dict[str, int]:
    val, test = (max(2, round(num * SHARES[split])) for split in ("val", "test"))
    return {"train": max(num - val - test, 2), "val": val, "test": test}


def compose(rng: np.random.Generator, *, new_pairs: bool | None = False) -> tuple[Placed, ...]:
    """A scene of one or two things in reading order. `new_pairs`: with at least one pair of HELD_OUT, without any, or (None)
    with whatever comes."""
    cells = [_CELLS[int(rng.integers(len(_CELLS)))]] if rng.random() < 0.3 else _PAIRS[int(rng.integers(len(_PAIRS)))]
    things = [_thing(rng, new=None if new_pairs is None else False) for _ in cells]
    if new_pairs:
        things[int(rng.integers(len(things)))] = _thing(rng, new=True)
    return tuple(Placed(thing, cell) for thing, cell in zip(things, cells, strict=True))


def _thing(rng: np.random.Generator, *, new: bool | None) -> Thing:
    while True:
        digit, colour = DIGITS[int(rng.integers(len(DIGITS)))], COLOURS[int(rng.integers(len(COLOURS)))]
        if new is None or ((digit, colour) in HELD_OUT) == new:
            return Thing(digit, colour, small=bool(rng.random() < 0.4))


_CELLS = tuple((row, column) for row in range(CELLS) for column in range(CELLS))
# Two cells of which one is clearly left of, or above, the other: not as far in one direction as in the other.
_PAIRS = tuple([one, other] for one, other in combinations(_CELLS, 2) if abs(one[0] - other[0]) != abs(one[1] - other[1]))


def relation_of(scene: Sequence[Placed]) -> str | None:
    """Where the first of two things is, seen from the second: "left of", "right of" or "above"; None for one thing."""
    if len(scene) < 2:
        return None
    (row, column), (other_row, other_column) = scene[0].cell, scene[1].cell
    if abs(column - other_column) > abs(row - other_row):
        return "left of" if column < other_column else "right of"
    return "above"


def draw(scene: Sequence[Placed], hand: Hand, rng: np.random.Generator, *, sway: float = 0.0) -> NDArray[np.uint8]:
    """The picture, uint8 [SIZE, SIZE, 3] RGB. `sway` bends the handwriting by up to so much, as another writer might."""
    import cv2

    blotches = rng.random((3, 3, 3), dtype=np.float32) * 0.15 + 0.03
    picture = cv2.resize(blotches, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    for one in scene:
        alpha = _ink(one.thing, hand, rng, sway)
        top, left = (CELL * place for place in one.cell)
        window = picture[top : top + CELL, left : left + CELL]
        window += alpha[..., None] * (_colour(one.thing.colour, rng) - window)
    picture += rng.normal(0, 0.02, picture.shape).astype(np.float32)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _colour(name: str, rng: np.random.Generator) -> NDArray[np.float32]:
    return np.clip(np.array(INKS[name]) * rng.uniform(0.8, 1.05) + rng.normal(0, 0.03, 3), 0, 1).astype(np.float32)


def _ink(thing: Thing, hand: Hand, rng: np.random.Generator, sway: float) -> NDArray[np.float32]:
    """How much of each pixel of a cell is ink, float32 [CELL, CELL]: the digit scaled, turned, bent and moved."""
    import cv2

    choices = hand.of_digit[DIGITS.index(thing.digit)]
    image = hand.images[choices[int(rng.integers(len(choices)))]]
    scale = rng.uniform(1.0, 1.15) if thing.small else rng.uniform(1.6, 1.85)
    angle = np.deg2rad(rng.uniform(-12, 12) * (1 + sway))
    turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    bent = np.eye(2) + rng.uniform(-sway, sway, (2, 2)) if sway else np.eye(2)
    matrix = np.zeros((2, 3))
    matrix[:, :2] = scale * turned @ bent
    room = max(CELL - 8 * scale, 0) / 2
    matrix[:, 2] = (CELL - 1) / 2 + rng.uniform(-room, room, 2) - matrix[:, :2] @ (3.5, 3.5)
    ink = cv2.warpAffine(image, matrix, (CELL, CELL), flags=cv2.INTER_LINEAR)
    thickness = 1.3 * np.exp(rng.uniform(-sway, sway)) if sway else 1.3
    return np.clip(ink * thickness, 0, 1).astype(np.float32)


def crowded_scenes(split: str, seed: int) -> Iterator[tuple[NDArray[np.uint8], tuple[Placed, ...]]]:
    """Pictures with a thing in about every second cell, and what is where; any pair of digit and colour. Without end."""
    hand, rng = Hand.of(split), np.random.default_rng([SEED, 7, seed])
    while True:
        scene = tuple(Placed(_thing(rng, new=None), cell) for cell in _CELLS if rng.random() < 0.6)
        yield draw(scene, hand, rng, sway=SWAY), scene


def inventories(rng: np.random.Generator) -> Iterator[tuple[str, list[str]]]:
    """What stands in each cell, a word each, and the captions of such a scene; any pair of digit and colour. Without end."""
    while True:
        scene = compose(rng, new_pairs=None)
        words = {one.cell: one.thing.noun.replace(" ", "") for one in scene}
        inventory = " ".join(words.get(cell, "nothing") for cell in _CELLS)
        yield inventory, phrasings([one.thing for one in scene], relation_of(scene))
