"""Predictions for people: JSON that can be read back, pictures that can be looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import mask as coco

from contracts.errors import SlipwayError
from contracts.pictures import PICTURES
from contracts.raw import RawInput
from serving.runtime import open_run
from tests.serving.stand_in import CLASSES, SCORE, picture, write_artifact, write_picture
from tests.workloads.segmentation.test_scoring import SETTINGS, rectangle, write
from workloads.segmentation.drawing import Drawn, colour_of, overlay
from workloads.segmentation.masks import Mask, filled
from workloads.segmentation.predicting import gallery, predict


@pytest.fixture
def run(tmp_path: Path):
    return open_run(write_artifact(tmp_path / "model", size=64), threads=1)


def test_a_prediction_is_json_with_its_mask_as_outline_and_as_run_lengths(run: Any, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "one.png", picture(64, 64, green=(8, 8, 32, 40)))
    [found] = predict(run, PICTURES.listed(path), SETTINGS, CLASSES)
    value = json.loads(json.dumps(found.json()))
    assert {key: value[key] for key in ("image", "width", "height")} == {"image": "one.png", "width": 64, "height": 64}
    [thing] = value["objects"]
    assert (thing["class"], thing["class_id"], thing["score"]) == ("green", 1, pytest.approx(SCORE))
    assert thing["box"] == [8, 8, 24, 32]
    assert thing["area"] == 24 * 32
    expected = np.zeros((64, 64), bool)
    expected[8:40, 8:32] = True
    assert (coco.decode(thing["rle"]).astype(bool) == expected).all()
    assert (filled(thing["polygons"], 64, 64).full(64, 64) == expected).all()


def test_a_folder_is_searched_through_in_order_and_names_are_relative(run: Any, tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/deep/y.png", ".hidden/x.png"):
        write_picture(tmp_path / "photos" / name, picture(80, 50, red=(8, 8, 32, 40)))
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    found = list(predict(run, PICTURES.listed(tmp_path / "photos"), SETTINGS, CLASSES))
    assert [one.name for one in found] == ["a/deep/y.png", "a/z.JPG", "b.png"]
    assert [len(one.json()["objects"]) for one in found] == [1, 1, 1]


def test_a_file_that_is_no_picture_is_told_and_the_others_go_on(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in ("a.png", "c.png"):
        write_picture(folder / name, picture(64, 64, red=(8, 8, 32, 40)))
    (folder / "b.png").write_bytes(b"not a picture")
    (folder / "d.png").write_bytes(b"")
    found = list(predict(run, PICTURES.listed(folder), SETTINGS, CLASSES))
    assert [one.error is None for one in found] == [True, False, True, False]
    assert found[1].json() == {"image": "b.png", "error": found[1].error}
    assert "b.png is not an image" in str(found[1].error)
    with pytest.raises(SlipwayError, match=r"b\.png"):
        found[1].draw()


def test_a_folder_of_nothing_but_broken_pictures_gives_nothing_but_errors(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"\x89PNG")
    assert [bool(one.error) for one in predict(run, PICTURES.listed(folder), SETTINGS, CLASSES)] == [True]


def test_a_missing_or_empty_source_is_refused(run: Any, tmp_path: Path) -> None:
    with pytest.raises(SlipwayError, match="nowhere does not exist"):
        list(predict(run, PICTURES.listed(tmp_path / "nowhere"), SETTINGS, CLASSES))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SlipwayError, match=r"empty holds no pictures \(\.bmp"):
        list(predict(run, PICTURES.listed(tmp_path / "empty"), SETTINGS, CLASSES))


def test_nothing_below_the_shown_confidence_is_predicted(run: Any, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "one.png", picture(64, 64, green=(8, 8, 32, 40)))
    strict = SETTINGS.model_copy(update={"evaluate": SETTINGS.evaluate.model_copy(update={"shown": 0.95})})
    [found] = predict(run, PICTURES.listed(path), strict, CLASSES)
    assert found.json()["objects"] == []


def test_grey_and_transparent_pictures_are_pictures_too(run: Any, tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "grey.png", np.full((40, 60), 200, np.uint8))
    write_picture(tmp_path / "in" / "see_through.png", np.full((40, 60, 4), 200, np.uint8))
    assert [one.error for one in predict(run, PICTURES.listed(tmp_path / "in"), SETTINGS, CLASSES)] == [None, None]


def test_a_small_overlay_is_enlarged_and_shows_the_object_s_colour(run: Any, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "one.png", picture(64, 48, green=(16, 8, 40, 40)))
    [found] = predict(run, PICTURES.listed(path), SETTINGS, CLASSES)
    drawn, plain = found.draw(), overlay(found.picture, [])
    assert drawn.shape == (48 * 6, 64 * 6, 3)
    changed = (drawn != plain).any(2)
    assert changed[24 * 6, 28 * 6]
    assert not changed[46 * 6, 60 * 6]


def test_a_large_overlay_keeps_its_size() -> None:
    mask = Mask(100, 100, np.ones((300, 400), bool))
    assert overlay(np.zeros((700, 900, 3), np.uint8), [Drawn(mask, "thing 0.90", 0)]).shape == (700, 900, 3)


@pytest.mark.parametrize("corner", [(0, 0), (890, 690), (0, 690), (890, 0)])
def test_objects_at_every_edge_can_be_drawn(corner: tuple[int, int]) -> None:
    x, y = corner
    mask = Mask(x, y, np.ones((10, 10), bool))
    assert overlay(np.zeros((700, 900, 3), np.uint8), [Drawn(mask, "a long name 0.90", 3)], most=200).any()


def test_colours_of_neighbouring_classes_differ() -> None:
    colours = np.array([colour_of(number) for number in range(12)], float)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    assert distance[~np.eye(12, dtype=bool)].min() > 40


def test_the_gallery_shows_truth_beside_prediction_with_a_caption(run: Any, tmp_path: Path) -> None:
    image = picture(64, 64, green=(8, 8, 32, 40))
    large = picture(1600, 800, red=(100, 100, 900, 700))
    records = write(tmp_path, [(image, [rectangle("green", (8, 8, 32, 40))]), (large, [])])
    (small_words, small), (large_words, wide) = gallery(run, records, SETTINGS, CLASSES)
    assert small_words == "00.png: overlap 1.00, 1 objects, 1 predicted"
    assert large_words == "01.png: overlap 0.00, 0 objects, 1 predicted"
    assert small.shape == (384 + 28, 2 * 384 + 6, 3)
    assert wide.shape == (320 + 28, 2 * 640 + 6, 3)
    assert small.dtype == np.uint8


def test_a_picture_in_memory_is_predicted_as_the_file_is(run: Any, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "one.png", picture(64, 64, green=(8, 8, 32, 40)))
    inputs = [RawInput("one.png", path.read_bytes()), RawInput("two.png", b"no picture")]
    held, broken = predict(run, inputs, SETTINGS, CLASSES)
    [read] = predict(run, PICTURES.listed(path), SETTINGS, CLASSES)
    assert held.json() == read.json()
    assert (held.draw() == read.draw()).all()
    assert broken.error == "two.png is not an image that OpenCV can decode (10 bytes)"
