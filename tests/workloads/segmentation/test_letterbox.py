"""The square that the network sees is the one Ultralytics makes, and places in it lead back."""

from __future__ import annotations

import numpy as np
import pytest

from workloads.segmentation.letterbox import Letterbox
from workloads.segmentation.yolo import prepare_ultralytics

SIZES = [(128, 128), (640, 480), (480, 640), (333, 500), (17, 1000), (1000, 3), (97, 61), (1, 1), (4000, 3000)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_place_in_the_picture_comes_back_from_the_square(width: int, height: int) -> None:
    geometry = Letterbox.fit(width, height, 128)
    points = np.random.default_rng(0).uniform(0, 1, (50, 2)) * (width, height)
    assert geometry.to_picture(geometry.to_square(points)) == pytest.approx(points)


def test_places_in_the_padding_come_back_as_the_edge() -> None:
    geometry = Letterbox.fit(200, 100, 64)
    assert geometry.to_picture(np.array([[0.0, 0.0], [64.0, 64.0]])).tolist() == [[0, 0], [200, 100]]


def test_a_picture_of_the_square_s_size_is_not_touched() -> None:
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert (Letterbox.fit(64, 64, 64).apply(image) == image).all()


def test_the_odd_pixel_of_padding_lies_right_and_below() -> None:
    geometry = Letterbox.fit(64, 61, 64)
    assert (geometry.top, geometry.inner_height, geometry.left, geometry.inner_width) == (1, 61, 0, 64)
    square = geometry.apply(np.zeros((61, 64, 3), np.uint8))
    assert [int((square[:, 0, 0] == 114)[rows].sum()) for rows in (slice(0, 32), slice(32, 64))] == [1, 2]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("size", [128, 640])
def test_the_square_equals_ultralytics_to_the_pixel(width: int, height: int, size: int) -> None:
    prepare_ultralytics()
    from ultralytics.data.augment import LetterBox

    image = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    assert (Letterbox.fit(width, height, size).apply(image) == LetterBox((size, size))(image=image)).all()
