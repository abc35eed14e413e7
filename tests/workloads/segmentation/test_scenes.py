"""The embedded data set: real handwriting in Labelbox's layout, no hand in two splits."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from workloads.segmentation.scenes import NAMES, SIZE, WRITERS, write_scenes


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_scenes(folder, 20)
    return folder


def _rows(raw: Path) -> list[dict[str, str]]:
    with (raw / "labels.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _picture(raw: Path, name: str) -> NDArray[np.uint8]:
    picture = cv2.imread(str(raw / "images" / name))
    assert picture is not None
    return np.asarray(picture, np.uint8)


def test_no_handwriting_of_one_split_appears_in_another() -> None:
    taken = [set(range(part.start, part.stop)) for part in WRITERS.values()]
    assert not taken[0] & taken[1]
    assert not taken[0] & taken[2]
    assert not taken[1] & taken[2]


def test_the_same_scenes_are_written_every_time(raw: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path, 20)
    for path in sorted(raw.rglob("*.jpg")):
        again = tmp_path / path.relative_to(raw)
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(again.read_bytes()).digest()
    assert (raw / "labels.csv").read_bytes() == (tmp_path / "labels.csv").read_bytes()


def test_every_split_has_scenes_of_one_to_six_known_digits(raw: Path) -> None:
    rows = _rows(raw)
    assert {row["External ID"].split("/")[0] for row in rows} == {"train", "val", "test"}
    for row in rows:
        objects = json.loads(row["Label"])["objects"]
        assert 1 <= len(objects) <= 6
        assert {one["value"] for one in objects} <= set(NAMES)
        assert _picture(raw, row["External ID"]).shape == (SIZE, SIZE, 3)


def test_outlines_lie_on_the_ink_they_name(raw: Path) -> None:
    """Inside an outline the picture differs from the ground round it."""
    for row in _rows(raw):
        picture = _picture(raw, row["External ID"]).astype(float)
        for one in json.loads(row["Label"])["objects"]:
            points = np.array([[point["x"], point["y"]] for point in one["polygon"]])
            assert points.min() >= 0
            assert points.max() <= SIZE
            mask = np.zeros((SIZE, SIZE), np.uint8)
            cv2.fillPoly(mask, [np.floor(points).astype(np.int32)], 1)
            near, far = (np.asarray(cv2.dilate(mask, np.ones((side, side), np.uint8)), bool) for side in (5, 9))
            ink, ground = picture[mask.astype(bool)].mean(0), picture[far & ~near].mean(0)
            assert np.abs(ink - ground).max() > 25
