"""Records to training batches, with Ultralytics' own augmentation made to depend on nothing but its key."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch

from contracts.errors import SlipwayError
from contracts.records import Records
from workloads.segmentation.settings import SegmentationTrain
from workloads.segmentation.yolo import prepare_ultralytics

CACHE_BYTES = 1 << 30
MASK_RATIO = 4


class SegmentationDataset:
    """Images with their objects. Decoded pictures are kept in memory, up to CACHE_BYTES in a process."""

    def __init__(self, records: Records, settings: SegmentationTrain, classes: Sequence[str], *, training: bool) -> None:
        prepare_ultralytics()
        self.records, self.settings, self.training = records, settings, training
        self.ids = {name: index for index, name in enumerate(classes)}
        self._pictures: dict[int, Any] = {}
        self._labels: dict[int, Any] = {}
        self._left = CACHE_BYTES
        self.cache = "ram"  # tells Ultralytics' Mosaic to draw its other pictures from the whole set
        self._mosaic, self._plain = self._transforms()
        self._format = self._formatter()

    def __len__(self) -> int:
        return len(self.records)

    def item(self, index: int, rng: np.random.Generator | None, *, draw: int, progress: float) -> dict[str, Any]:
        """One picture uint8 [3, S, S] RGB with `cls` [n, 1], `bboxes` [n, 4] (cx, cy, w, h, 0 to 1) and `masks` [1, s, s].

        Mosaic ends when only the part `close_mosaic` of the run is left, so that the last epochs see whole pictures.
        """
        labels = self.get_image_and_label(index)
        with _seeded(0 if rng is None else int(rng.integers(2**31))):  # the format draws too, whatever it is told
            if rng is not None:
                early = progress < 1 - self.settings.augmentation.close_mosaic
                labels = self._mosaic(labels) if early and self.settings.augmentation.mosaic else self._plain(labels)
            return self._format(labels)

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch as `SegmentationObjective` takes it."""
        counts = [len(item["cls"]) for item in items]
        return {
            "images": torch.stack([item["img"] for item in items]),
            "masks": torch.cat([item["masks"] for item in items]),
            "batch_idx": torch.repeat_interleave(torch.arange(len(items)), torch.tensor(counts)).float(),
            "cls": torch.cat([item["cls"].view(-1, 1).float() for item in items]),
            "bboxes": torch.cat([item["bboxes"].float() for item in items]),
        }

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """A picture, its longer side resized to `image_size`, and fresh labels (Mosaic asks for its other pictures here)."""
        from ultralytics.utils.instance import Instances

        picture, labels = self._picture(index), self._objects(index)
        classes, boxes, segments = labels
        height, width = picture.shape[:2]
        return {
            "im_file": self.records.key(index),  # Mosaic takes it along
            "img": picture.copy(),
            "cls": classes.copy(),
            "instances": Instances(boxes.copy(), segments.copy(), bbox_format="xyxy", normalized=True),
            "ori_shape": (height, width),
            "resized_shape": (height, width),
        }

    def _picture(self, index: int) -> np.ndarray:
        if index in self._pictures:
            return self._pictures[index]
        path = self.records.root / self.records[index].inputs["image"]
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is None:
            raise SlipwayError(f"{path} could not be read as an image: it was readable when it was parsed; run parse again")
        height, width = picture.shape[:2]
        ratio = self.settings.image_size / max(height, width)
        if ratio != 1:
            size = max(1, round(width * ratio)), max(1, round(height * ratio))
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)  # as in use: see letterbox.py
        if picture.nbytes <= self._left:
            self._left -= picture.nbytes
            self._pictures[index] = picture
        return picture

    def _objects(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Class ids float32 [n, 1], boxes [n, 4] and outlines [n, k, 2], both as shares of the picture's sides."""
        if index not in self._labels:
            self._labels[index] = self._read_objects(index)
        return self._labels[index]

    def _read_objects(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        from ultralytics.data.converter import merge_multi_segment
        from ultralytics.utils.ops import resample_segments

        record = self.records[index]
        size = np.array([record.inputs["width"], record.inputs["height"]], np.float32)
        outlines, classes = [], []
        for one in record.targets["objects"]:
            parts = [np.asarray(part, np.float32).reshape(-1, 2) for part in one["polygons"]]
            merged = parts[0] if len(parts) == 1 else np.concatenate(merge_multi_segment([part.tolist() for part in parts]))
            outlines.append(merged / size)
            classes.append(self.ids[one["name"]])
        if not outlines:
            return np.zeros((0, 1), np.float32), np.zeros((0, 4), np.float32), np.zeros((0, 2, 2), np.float32)
        # One more than the longest (the outline is closed), so that resampling keeps every corner.
        segments = np.stack(resample_segments(outlines, n=max(map(len, outlines)) + 1)).astype(np.float32)
        boxes = np.concatenate([segments.min(1), segments.max(1)], axis=1)
        return np.array(classes, np.float32)[:, None], boxes, segments

    def _transforms(self) -> tuple[Any, Any]:
        """Ultralytics' augmentation with and without mosaic."""
        from ultralytics.data.augment import Compose, Mosaic, RandomFlip, RandomHSV, RandomPerspective

        how, size = self.settings.augmentation, self.settings.image_size
        perspective = RandomPerspective(degrees=how.degrees, translate=how.translate, scale=how.scale, size=(size, size))
        rest = [
            perspective,
            RandomHSV(hgain=how.hsv_h, sgain=how.hsv_s, vgain=how.hsv_v),
            RandomFlip(direction="vertical", p=how.flipud),
            RandomFlip(direction="horizontal", p=how.fliplr),
        ]
        return Compose([Mosaic(self, imgsz=size, p=how.mosaic), *rest]), Compose(rest)

    def _formatter(self) -> Any:
        from ultralytics.data.augment import Compose, Format, LetterBox

        size = self.settings.image_size
        make = Format(
            bbox_format="xywh", normalize=True, return_mask=True, mask_ratio=MASK_RATIO, mask_overlap=True, bgr=0.0
        )
        return Compose([LetterBox((size, size), scaleup=False), make])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's and numpy's global randomness, which Ultralytics draws from, started from `seed` and put back after."""
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)
