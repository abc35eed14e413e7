"""Results for people: predictions for raw pictures as JSON and overlays, truth beside prediction for others. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from contracts.errors import SlipwayError
from workloads.segmentation.decoding import Instances
from workloads.segmentation.drawing import GALLERY_SIDE, Drawn, beside, overlay
from workloads.segmentation.masks import filled
from workloads.segmentation.pictures import Seen, look, read_raw, read_record
from workloads.segmentation.scoring import predictions_of, quality, truths_of

if TYPE_CHECKING:
    from contracts.raw import RawInput
    from contracts.records import Record, Records
    from contracts.workload import Run
    from workloads.segmentation.settings import SegmentationSettings


@dataclass(frozen=True)
class SegmentationPrediction:
    """The objects of one picture. `name` is the raw input's; `error` says why there is no result."""

    name: str
    classes: Sequence[str]
    picture: np.ndarray
    found: Instances
    error: str | None = None

    def json(self) -> dict[str, Any]:
        """Plain values: size, and for each object class, score, box (x, y, width, height) and its mask, twice.

        `polygons` are outlines x1, y1, x2, y2... in pixels, one for each part; `rle` is COCO's run lengths, compressed.
        """
        if self.error:
            return {"image": self.name, "error": self.error}
        height, width = self.picture.shape[:2]
        objects = []
        for mask, label, score, box in zip(*self._columns(), strict=True):
            x1, y1, x2, y2 = box.tolist()
            objects.append(
                {
                    "class": self.classes[label],
                    "class_id": int(label),
                    "score": round(float(score), 4),
                    "box": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                    "area": mask.area,
                    "polygons": mask.polygons(),
                    "rle": {"size": [height, width], "counts": mask.counts(height, width)},
                }
            )
        return {"image": self.name, "width": width, "height": height, "objects": objects}

    def draw(self) -> np.ndarray:
        """The picture with its objects, uint8 [height, width, 3], BGR; a small one is enlarged by a whole factor.

        Raises:
            SlipwayError: when there is no result.
        """
        if self.error:
            raise SlipwayError(self.error)
        return overlay(self.picture, drawn(self.found, self.classes))

    def _columns(self) -> tuple[Any, ...]:
        return self.found.masks, self.found.classes, self.found.scores, self.found.boxes


def predict(
    run: Run, inputs: Iterable[RawInput], settings: SegmentationSettings, classes: Sequence[str]
) -> Iterator[SegmentationPrediction]:
    """Predictions for pictures, in order. What is no picture comes as a prediction with an `error`; the others go on."""
    how, size = settings.evaluate, settings.train.image_size
    for seen in look(run, inputs, read_raw, how, size=size, confidence=how.shown, many_labels=False, skip_unreadable=True):
        yield SegmentationPrediction(seen.item.name, classes, seen.picture, covering(seen.found), seen.error)


def covering(found: Instances) -> Instances:
    """The objects whose mask covers anything."""
    kept = [index for index, mask in enumerate(found.masks) if mask.window.any()]
    return Instances(found.boxes[kept], found.scores[kept], found.classes[kept], [found.masks[index] for index in kept])


def drawn(found: Instances, classes: Sequence[str]) -> list[Drawn]:
    """The objects with their class and confidence."""
    rows = zip(found.masks, found.classes.tolist(), found.scores.tolist(), strict=True)
    return [Drawn(mask, f"{classes[label]} {score:.2f}", label) for mask, label, score in rows]


def gallery(
    run: Run, records: Records, settings: SegmentationSettings, classes: Sequence[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """For each record, in order: a caption, and the truth beside the prediction (BGR, each 384 to 640 pixels long)."""
    how, ids = settings.evaluate, {name: index for index, name in enumerate(classes)}
    read = partial(read_record, records.root)
    for seen in look(run, records, read, how, size=settings.train.image_size, confidence=how.shown, many_labels=False):
        found = covering(seen.found)
        truth = overlay(seen.picture, true_objects(seen.item, ids), most=GALLERY_SIDE)
        prediction = overlay(seen.picture, drawn(found, classes), most=GALLERY_SIDE)
        titles = (
            f"truth: {len(seen.item.targets['objects'])}",
            f"prediction: {len(found)} (confidence {how.shown:g} and more)",
        )
        yield caption(seen, ids, shown=how.shown), beside(truth, prediction, titles)


def true_objects(record: Record, ids: dict[str, int]) -> list[Drawn]:
    """A record's labels."""
    size = record.inputs["height"], record.inputs["width"]
    return [Drawn(filled(one["polygons"], *size), one["name"], ids[one["name"]]) for one in record.targets["objects"]]


def caption(seen: Seen[Record], ids: dict[str, int], *, shown: float) -> str:
    """`val/scene_00012.jpg: overlap 0.83, 4 objects, 5 predicted`."""
    height, width = seen.picture.shape[:2]
    truths, predictions = truths_of(seen.item, ids), predictions_of(seen)
    share = quality(truths, predictions, height, width, shown=shown)
    return f"{seen.item.key}: overlap {share:.2f}, {len(truths['classes'])} objects, {len(covering(seen.found))} predicted"
