"""Training pictures: what is in the records arrives as it is, and chance depends on nothing but its key."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contracts.plan import Plan
from contracts.records import Records
from engine.feeding import feed
from engine.randomness import generator
from engine.stream import Stream
from tests.conftest import Scenes
from workloads.segmentation.dataset import MASK_RATIO, SegmentationDataset
from workloads.segmentation.masks import filled
from workloads.segmentation.settings import SegmentationTrain

VARIED = {"mosaic": 1.0, "degrees": 20, "translate": 0.1, "scale": 0.4, "fliplr": 0.5, "flipud": 0.5}


def _dataset(scenes: Scenes, *, image_size: int = 64, **augmentation: Any) -> SegmentationDataset:
    settings = SegmentationTrain.model_validate({"image_size": image_size, "augmentation": augmentation})
    records = Records.open(scenes.records, root=scenes.raw).split("train")
    return SegmentationDataset(records, settings, scenes.facts["classes"], training=True)


def _item(
    dataset: SegmentationDataset, index: int, *, seed: int = 7, epoch: int = 1, progress: float = 0.1
) -> dict[str, Any]:
    return dataset.item(index, generator(seed, "sample", epoch, index), draw=epoch, progress=progress)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors = [name for name, value in one.items() if isinstance(value, torch.Tensor)]
    assert set(tensors) >= {"img", "cls", "bboxes", "masks"}
    return all(torch.equal(one[name], other[name]) for name in tensors)


def test_the_same_key_gives_the_same_picture_in_whatever_order(scenes: Scenes) -> None:
    one, other = _dataset(scenes, **VARIED), _dataset(scenes, **VARIED)
    forwards = {index: _item(one, index) for index in range(6)}
    backwards = {index: _item(other, index) for index in reversed(range(6))}
    assert all(_same(forwards[index], backwards[index]) for index in range(6))
    assert _same(forwards[3], _item(one, 3))  # with every picture in memory by now


def test_another_seed_or_epoch_gives_another_picture(scenes: Scenes) -> None:
    dataset = _dataset(scenes, **VARIED)
    assert not _same(_item(dataset, 0), _item(dataset, 0, seed=8))
    assert not _same(_item(dataset, 0), _item(dataset, 0, epoch=2))


def test_loader_processes_change_nothing(scenes: Scenes, tmp_path: Path) -> None:
    plan = Plan("single", "cpu", 1, 4, 1, 1, 0, 2, "fp32", {})
    dataset = _dataset(scenes, **VARIED)
    stream = Stream(len(dataset), 4, 0.3, seed=7)
    plans = (replace(plan, workers=workers) for workers in (0, 1))
    here, there = (list(feed(dataset, stream, one, rank=0, first_step=0, beacons=tmp_path)) for one in plans)
    assert len(here) == len(there) == stream.num_steps > 1
    for (samples, one), (others, other) in zip(here, there, strict=True):
        assert samples == others
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_global_randomness_is_left_as_it_was_and_does_not_matter(scenes: Scenes) -> None:
    dataset = _dataset(scenes, **VARIED)
    first = _item(dataset, 2)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # pyright: ignore
    assert _same(first, _item(dataset, 2))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # pyright: ignore
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize(("close_mosaic", "last"), [(0.25, 0.74), (1.0, -1.0), (0.0, 0.999)])
def test_mosaic_ends_when_the_set_part_of_the_run_is_left(scenes: Scenes, close_mosaic: float, last: float) -> None:
    still = {"hsv_h": 0, "hsv_s": 0, "hsv_v": 0, "translate": 0, "scale": 0}
    dataset = _dataset(scenes, **still, mosaic=1.0, close_mosaic=close_mosaic)
    whole = dataset.item(0, None, draw=0, progress=0)
    for progress in (0.0, 0.5, 0.74, 0.75, 0.9, 0.999):
        assert torch.equal(_item(dataset, 0, progress=progress)["img"], whole["img"]) == (progress > last)


def test_what_is_drawn_into_memory_is_never_changed(scenes: Scenes) -> None:
    dataset = _dataset(scenes, **VARIED)
    before = dataset.item(0, None, draw=0, progress=0)
    for epoch in range(3):
        _item(dataset, 0, epoch=epoch)
    assert _same(before, dataset.item(0, None, draw=0, progress=0))


def test_without_augmentation_every_object_of_a_record_arrives(scenes: Scenes) -> None:
    dataset = _dataset(scenes, image_size=128)
    names = scenes.facts["classes"]
    several = 0
    for index, record in enumerate(dataset.records):
        item, objects = dataset.item(index, None, draw=0, progress=0), record.targets["objects"]
        several += len(objects) > 1
        # Overlapping masks are painted from the largest to the smallest, and the objects put in that order.
        assert sorted(names[int(one)] for one in item["cls"]) == sorted(one["name"] for one in objects)
        boxes = {tuple(np.round(_box(one["polygons"]), 2)) for one in objects}
        found = (item["bboxes"].double() * 128).numpy()
        corners = np.concatenate([found[:, :2] - found[:, 2:] / 2, found[:, :2] + found[:, 2:] / 2], axis=1)
        for corner in corners:
            assert min(np.abs(np.array(box) - corner).max() for box in boxes) < 0.1
        _assert_masks_agree(item["masks"][0].numpy(), objects)
    assert several > 10


def _box(polygons: list[Any]) -> np.ndarray:
    points = np.concatenate([np.asarray(part, float).reshape(-1, 2) for part in polygons])
    return np.concatenate([points.min(0), points.max(0)])


def _assert_masks_agree(masks: np.ndarray, objects: list[dict[str, Any]]) -> None:
    """`masks` [32, 32]: 0 is the ground; as many other numbers as there are objects, where the objects are."""
    assert set(np.unique(masks)) - {0} <= set(range(1, len(objects) + 1))
    truth = np.zeros((128, 128), bool)
    for one in objects:
        truth |= filled(one["polygons"], 128, 128).full(128, 128)
    share = truth.reshape(masks.shape[0], MASK_RATIO, masks.shape[1], MASK_RATIO).mean((1, 3))
    assert (masks[share == 1] > 0).all()
    assert (masks[share == 0] == 0).all()


def test_a_batch_numbers_its_objects_by_picture(scenes: Scenes) -> None:
    dataset = _dataset(scenes)
    items = [dataset.item(index, None, draw=0, progress=0) for index in range(5)]
    batch = dataset.collate(items)
    assert batch["images"].shape == (5, 3, 64, 64) and batch["images"].dtype == torch.uint8
    assert batch["masks"].shape == (5, 16, 16)
    for index, item in enumerate(items):
        chosen = batch["batch_idx"] == index
        assert torch.equal(batch["bboxes"][chosen], item["bboxes"].float())
        assert torch.equal(batch["cls"][chosen], item["cls"].view(-1, 1).float())
