"""A mask's forms (window, run lengths, outlines) lead to each other without loss."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from faster_coco_eval import mask as coco

from workloads.segmentation.masks import Mask, box_overlap, filled, overlap


def blobs(seed: int, height: int, width: int) -> np.ndarray:
    """Random shapes with holes and several parts."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 2.5) > 0.03


@pytest.mark.parametrize("seed", range(8))
def test_run_lengths_are_coco_s_own_wherever_the_window_lies(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(8, 40, 2).tolist()
    y, bottom = sorted(rng.integers(0, height + 1, 2).tolist())
    x, right = sorted(rng.integers(0, width + 1, 2).tolist())
    for rows, columns in (
        (slice(y, bottom), slice(x, right)),
        (slice(0, height), slice(x, right)),
        (slice(0, height), slice(0, width)),
    ):
        window = rng.random((height, width))[rows, columns] > 0.3
        mask = Mask(columns.start, rows.start, window)
        expected = coco.encode(np.asfortranarray(mask.full(height, width).astype(np.uint8)))
        assert mask.counts(height, width).encode() == expected["counts"]


@pytest.mark.parametrize("full", [False, True])
def test_a_mask_of_nothing_and_one_of_everything_have_run_lengths(full: bool) -> None:
    mask = Mask(0, 0, np.full((4, 5), full))
    assert (coco.decode({"size": [4, 5], "counts": mask.counts(4, 5)}) == full).all()
    assert Mask(2, 1, np.zeros((0, 0), bool)).counts(4, 5) == Mask(0, 0, np.zeros((4, 5), bool)).counts(4, 5)


@pytest.mark.parametrize("seed", range(8))
def test_outlines_filled_again_give_the_mask(seed: int) -> None:
    window = blobs(seed, 60, 80)
    mask = Mask(7, 3, window)
    again = filled(mask.polygons(), 70, 90).full(70, 90)
    assert (again != mask.full(70, 90)).sum() <= 0.002 * window.sum(), "bridges may cross a pixel of another hole"


def test_a_ring_keeps_its_hole() -> None:
    window = np.zeros((30, 30), np.uint8)
    cv2.circle(window, (15, 15), 12, 1, -1)
    cv2.circle(window, (15, 15), 5, 0, -1)
    mask = Mask(0, 0, window.astype(bool))
    assert len(mask.polygons()) == 1
    assert (filled(mask.polygons(), 30, 30).full(30, 30) == mask.window).all()


def test_single_pixels_and_lines_survive_as_outlines() -> None:
    window = np.zeros((9, 9), bool)
    window[1, 1] = window[4, 2:7] = True
    mask = Mask(0, 0, window)
    assert (filled(mask.polygons(), 9, 9).full(9, 9) == window).all()


def test_several_outlines_of_an_object_are_united_and_not_subtracted() -> None:
    one, two = [0, 0, 9, 0, 9, 9, 0, 9], [5, 5, 14, 5, 14, 14, 5, 14]
    mask = filled([one, two], 20, 20).full(20, 20)
    assert mask[7, 7]
    assert mask.sum() == 100 + 100 - 25


def test_an_outline_that_runs_back_through_itself_leaves_its_hole_open() -> None:
    outer, inner = [0, 0, 20, 0, 20, 20, 0, 20, 0, 0], [5, 5, 15, 5, 15, 15, 5, 15, 5, 5, 0, 0]
    assert not filled([outer + inner], 30, 30).full(30, 30)[10, 10]


def test_what_lies_outside_the_picture_is_cut_off() -> None:
    assert filled([[-10, -10, 4, -10, 4, 4, -10, 4]], 20, 20).full(20, 20).sum() == 25
    assert filled([[30, 30, 40, 30, 40, 40]], 20, 20).area == 0
    assert filled([], 20, 20).area == 0


@pytest.mark.parametrize("seed", range(4))
def test_outlines_are_filled_as_ultralytics_fills_them_for_training(seed: int) -> None:
    polygon = (np.random.default_rng(seed).uniform(2, 60, (7, 2))).astype(np.float32)
    expected = np.zeros((64, 64), np.uint8)
    cv2.fillPoly(expected, [polygon.astype(np.int32)], color=(1,))
    assert (filled([polygon.ravel().tolist()], 64, 64).full(64, 64) == expected.astype(bool)).all()


def test_overlaps_are_those_of_the_pixels() -> None:
    windows = [blobs(seed, 20, 30) for seed in range(3)]
    counts = [Mask(0, 0, window).counts(20, 30) for window in windows]
    expected = [[(a & b).sum() / (a | b).sum() for b in windows[1:]] for a in windows]
    assert overlap(counts, counts[1:], 20, 30) == pytest.approx(np.array(expected))
    assert overlap([], counts, 20, 30).shape == (0, 3)
    assert overlap(counts, [], 20, 30).shape == (3, 0)


def test_overlaps_of_boxes_are_those_of_their_areas() -> None:
    assert box_overlap([[0, 0, 10, 10]], [[5, 0, 10, 10], [20, 20, 1, 1]]) == pytest.approx(np.array([[1 / 3, 0]]))
    assert box_overlap([], [[0, 0, 1, 1]]).shape == (0, 1)
