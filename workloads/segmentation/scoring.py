"""How good predictions are: what must be known of each picture, and from that the COCO metrics of a split. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from contracts.errors import SlipwayError
from contracts.workload import Chart, Measure, Scores
from workloads.segmentation.masks import box_overlap, filled, overlap
from workloads.segmentation.pictures import Seen, look, read_record

if TYPE_CHECKING:
    from contracts.records import Record, Records
    from contracts.workload import Run
    from workloads.segmentation.settings import SegmentationSettings

# What Ultralytics' confusion matrix counts: boxes of this confidence and overlap, whatever their class.
CONFUSION_CONFIDENCE, CONFUSION_IOU = 0.25, 0.45
MATCH_IOU = 0.5
MIN_DETECTIONS = 100
CONFIDENCES = np.linspace(0, 1, 1000)
Name = Literal["mask", "box"]
KINDS: tuple[Name, ...] = ("mask", "box")


def measure(run: Run, records: Records, settings: SegmentationSettings, classes: Sequence[str]) -> Iterator[Measure]:
    """For each record, in order: its `key` and `size` [height, width], its `truths` and `predictions`, and its `quality`.

    Both are columns: `classes` (ids), `boxes` (x, y, width, height in pixels), `masks` (COCO's compressed run lengths), and
    `scores` of the predictions, best first. `quality` is the overlap of truths with the predictions that would be shown,
    as a share: 1 is perfect, a missed or a false object counts as 0.
    """
    ids = {name: index for index, name in enumerate(classes)}
    read = partial(read_record, records.root)
    how = settings.evaluate
    size = settings.train.image_size
    for seen in look(run, records, read, how, size=size, confidence=how.confidence, many_labels=True):
        height, width = seen.picture.shape[:2]
        truths, predictions = truths_of(seen.item, ids), predictions_of(seen)
        yield {
            "key": seen.item.key,
            "size": [height, width],
            "truths": truths,
            "predictions": predictions,
            "quality": quality(truths, predictions, height, width, shown=how.shown),
        }


def truths_of(record: Record, ids: Mapping[str, int]) -> dict[str, list[Any]]:
    """Classes, boxes and masks of a record's objects. A box is the extent of the outlines, cut to the picture.

    Raises:
        SlipwayError: for a class that the model does not know.
    """
    width, height = record.inputs["width"], record.inputs["height"]
    columns: dict[str, list[Any]] = {"classes": [], "boxes": [], "masks": []}
    for one in record.targets["objects"]:
        if one["name"] not in ids:
            raise SlipwayError(f"{record.key}: the class {one['name']!r} is not one of the model's: {', '.join(ids)}")
        corners = np.concatenate([np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in one["polygons"]])
        corners = np.clip(corners, 0, (width, height))
        low, high = corners.min(0), corners.max(0)
        columns["classes"].append(ids[one["name"]])
        columns["boxes"].append([*low.tolist(), *(high - low).tolist()])
        columns["masks"].append(filled(one["polygons"], height, width).counts(height, width))
    return columns


def predictions_of(seen: Seen[Any]) -> dict[str, list[Any]]:
    """Classes, scores, boxes and masks of what was found in a picture."""
    height, width = seen.picture.shape[:2]
    found = seen.found
    boxes = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], axis=1)
    return {
        "classes": found.classes.tolist(),
        "scores": found.scores.tolist(),
        "boxes": boxes.tolist(),
        "masks": [one.counts(height, width) for one in found.masks],
    }


def quality(truths: Mapping[str, Any], predictions: Mapping[str, Any], height: int, width: int, *, shown: float) -> float:
    """Twice the overlap of matched pairs over the number of truths and shown predictions; 1 where there are neither."""
    num_shown = sum(score >= shown for score in predictions["scores"])
    total = len(truths["classes"]) + num_shown
    if not total:
        return 1.0
    ious = overlap(predictions["masks"][:num_shown], truths["masks"], height, width)
    ious *= np.equal.outer(predictions["classes"][:num_shown], truths["classes"])
    return float(2 * ious[pairs(ious, 0.0)].sum() / total)


def pairs(ious: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns that belong together: each row in turn takes the best column still free that overlaps more."""
    free = ious.copy()
    rows, columns = [], []
    for row in np.flatnonzero((ious > threshold).any(1)).tolist() if ious.size else []:
        column = int(free[row].argmax())
        if free[row, column] > threshold:
            rows.append(row)
            columns.append(column)
            free[:, column] = -1
    return np.array(rows, int), np.array(columns, int)


@dataclass(frozen=True)
class Kind:
    """What was found for masks, or for boxes. A class without truths has NaN.

    `average_precision` [10 thresholds, classes] and `precision_at_recall` [101 recalls, classes] are COCO's;
    `precision`, `recall` [1000 confidences, classes] count matches at an overlap of 0.5; `best` is the position of the
    confidence with the best mean F1.
    """

    average_precision: np.ndarray
    precision_at_recall: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    best: int

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall, [1000, classes]."""
        return 2 * self.precision * self.recall / (self.precision + self.recall + 1e-16)


def score(measures: Iterable[Measure], classes: Sequence[str]) -> Scores:
    """COCO's average precision of masks and boxes, precision and recall at the confidence with the best F1, per class too.

    A picture without objects counts (what is found there is false); a class without objects is left out of every mean,
    and its row holds None. With no objects or no predictions at all every metric is 0.
    """
    measures = list(measures)
    objects = np.bincount([one for each in measures for one in each["truths"]["classes"]], minlength=len(classes))
    kinds: dict[Name, Kind] = {kind: _judge(measures, objects, kind) for kind in KINDS}
    metrics: dict[str, float] = {}
    for name, kind in kinds.items():
        metrics[f"{name}_map50_95"] = _mean(kind.average_precision)
        metrics[f"{name}_map50"] = _mean(kind.average_precision[0])
        metrics[f"{name}_precision"] = _mean(kind.precision[kind.best])
        metrics[f"{name}_recall"] = _mean(kind.recall[kind.best])
        metrics[f"{name}_confidence"] = float(CONFIDENCES[kind.best])
    metrics |= {"num_images": float(len(measures)), "num_objects": float(objects.sum())}
    rows = [_row(index, name, int(objects[index]), kinds) for index, name in enumerate(classes)]
    return Scores(metrics, rows, _charts(measures, classes, objects, kinds["mask"]), meanings())


def meanings() -> dict[str, str]:
    """What each metric and each column of the table means, in a sentence."""
    found = {
        "num_images": "Pictures that were scored.",
        "num_objects": "Labelled objects in them.",
        "objects": "Labelled objects.",
    }
    for kind, whose in (("mask", "masks"), ("box", "boxes")):
        found |= {
            f"{kind}_map50_95": f"Average precision of {whose}: mean over overlaps of 0.5 to 0.95 and classes (COCO).",
            f"{kind}_map50": f"Average precision of {whose} that overlap by a half or more: mean over classes (COCO).",
            f"{kind}_precision": f"Share of predicted {whose} that are right, at the confidence below; mean over classes.",
            f"{kind}_recall": f"Share of labelled {whose} that are found, at the confidence below; mean over classes.",
            f"{kind}_confidence": f"The confidence at which precision and recall of {whose} balance best (highest F1).",
            f"{kind}_ap50": f"Average precision of {whose} that overlap the truth by a half or more.",
            f"{kind}_ap50_95": f"Average precision of {whose}, mean over overlaps from 0.5 to 0.95.",
        }
    return found


def _row(index: int, name: str, num_objects: int, kinds: Mapping[Name, Kind]) -> dict[str, Any]:
    row: dict[str, Any] = {"class": name, "objects": num_objects}
    for prefix, kind in kinds.items():
        values = {
            "ap50": kind.average_precision[0, index],
            "ap50_95": kind.average_precision[:, index].mean(),
            "precision": kind.precision[kind.best, index],
            "recall": kind.recall[kind.best, index],
        }
        row |= {f"{prefix}_{key}": float(value) if num_objects else None for key, value in values.items()}
    return row


def _judge(measures: Sequence[Measure], objects: np.ndarray, kind: Name) -> Kind:
    averages, at_recall = _coco(measures, objects, kind)
    precision, recall = _at_confidences(*_matched(measures, kind), objects)
    judged = Kind(averages, at_recall, precision, recall, 0)
    if not (objects > 0).any():
        return judged
    mean_f1 = judged.f1[:, objects > 0].mean(1)
    return Kind(averages, at_recall, precision, recall, int(_smoothed(mean_f1).argmax()) if mean_f1.any() else 0)


def _coco(measures: Sequence[Measure], objects: np.ndarray, kind: Name) -> tuple[np.ndarray, np.ndarray]:
    """COCO's average precision [10, classes] and its interpolated precision at an overlap of 0.5 [101, classes]."""
    from faster_coco_eval import COCO, COCOeval_faster

    if not measures or not objects.sum():
        return np.full((10, len(objects)), np.nan), np.full((101, len(objects)), np.nan)
    truths, predictions = (
        COCO(_dataset(measures, "truths", len(objects))),
        COCO(_dataset(measures, "predictions", len(objects))),
    )
    judge = COCOeval_faster(truths, predictions, "segm" if kind == "mask" else "bbox", rle_iou_max_workers=1)
    most = max(MIN_DETECTIONS, *(len(each["predictions"]["scores"]) for each in measures))
    judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
    judge.params.maxDets = [most]
    judge.evaluate()
    judge.accumulate()
    precision = np.asarray(judge.eval["precision"], float).reshape(10, 101, len(objects))
    precision[precision < 0] = np.nan
    return precision.mean(1), precision[0]


def _dataset(measures: Sequence[Measure], side: Literal["truths", "predictions"], num_classes: int) -> dict[str, Any]:
    """One side of the measures as a COCO data set."""
    annotations: list[dict[str, Any]] = []
    images = [{"id": index, "height": each["size"][0], "width": each["size"][1]} for index, each in enumerate(measures)]
    for index, each in enumerate(measures):
        columns = each[side]
        scores = columns.get("scores", [1.0] * len(columns["classes"]))
        for label, box, counts, confidence in zip(
            columns["classes"], columns["boxes"], columns["masks"], scores, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 means "unmatched" to COCO's code
                    "image_id": index,
                    "category_id": label,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "segmentation": {"size": each["size"], "counts": counts},
                    "score": confidence,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": index, "name": str(index)} for index in range(num_classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _matched(measures: Sequence[Measure], kind: Name) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every prediction of the split: its class, its score, and whether a truth of that class belongs to it."""
    classes, scores, right = [], [], []
    for each in measures:
        truths, predictions = each["truths"], each["predictions"]
        if kind == "mask":
            ious = overlap(predictions["masks"], truths["masks"], *each["size"])
        else:
            ious = box_overlap(predictions["boxes"], truths["boxes"])
        if ious.size:
            ious = ious * np.equal.outer(predictions["classes"], truths["classes"])
        hit = np.zeros(len(predictions["classes"]), bool)
        hit[pairs(ious, np.nextafter(MATCH_IOU, 0))[0]] = True
        classes.extend(predictions["classes"])
        scores.extend(predictions["scores"])
        right.extend(hit.tolist())
    return np.array(classes, int), np.array(scores), np.array(right, bool)


def _at_confidences(
    classes: np.ndarray, scores: np.ndarray, right: np.ndarray, objects: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall at each of CONFIDENCES, [1000, classes], interpolated between scores as Ultralytics does."""
    precision, recall = (np.full((len(CONFIDENCES), len(objects)), np.nan) for _ in range(2))
    order = np.argsort(-scores, kind="stable")
    classes, scores, right = classes[order], scores[order], right[order]
    for index in np.flatnonzero(objects).tolist():
        mine = classes == index
        hits, misses = right[mine].cumsum(), (~right[mine]).cumsum()
        precision[:, index] = recall[:, index] = 0
        if mine.any():
            recall[:, index] = np.interp(-CONFIDENCES, -scores[mine], hits / (objects[index] + 1e-16), left=0)
            precision[:, index] = np.interp(-CONFIDENCES, -scores[mine], hits / (hits + misses), left=1)
    return precision, recall


def _smoothed(values: np.ndarray, share: float = 0.1) -> np.ndarray:
    """A running mean over that share of the values, edges held: the top of a curve, not of its noise."""
    width = round(len(values) * share * 2) // 2 + 1
    edge = np.ones(width // 2)
    return np.convolve(np.concatenate([edge * values[0], values, edge * values[-1]]), np.ones(width) / width, mode="valid")


def confusion(measures: Iterable[Measure], num_classes: int) -> np.ndarray:
    """True class (row) against predicted class (column), counts; the last of each is the background: false and missed."""
    matrix = np.zeros((num_classes + 1, num_classes + 1), int)
    for each in measures:
        truths, predictions = each["truths"], each["predictions"]
        num_shown = sum(value > CONFUSION_CONFIDENCE for value in predictions["scores"])
        true, said = np.array(truths["classes"], int), np.array(predictions["classes"][:num_shown], int)
        found, owner = pairs(box_overlap(predictions["boxes"][:num_shown], truths["boxes"]), CONFUSION_IOU)
        np.add.at(matrix, (true[owner], said[found]), 1)
        matrix[num_classes] += np.bincount(np.delete(said, found), minlength=num_classes + 1)
        matrix[:, num_classes] += np.bincount(np.delete(true, owner), minlength=num_classes + 1)
    return matrix


def _charts(measures: Sequence[Measure], classes: Sequence[str], objects: np.ndarray, kind: Kind) -> list[Chart]:
    counts = confusion(measures, len(classes))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    present = np.flatnonzero(objects).tolist()
    rule = f"boxes, confidence above {CONFUSION_CONFIDENCE}, overlap above {CONFUSION_IOU}"
    labels, recalls, thinned = [*classes, "background"], np.linspace(0, 1, 101), slice(None, None, 9)
    curve, f1 = (
        _lines(classes, present, recalls, kind.precision_at_recall),
        _lines(classes, present, CONFIDENCES[thinned], kind.f1[thinned]),
    )
    return [
        _matrix(f"Confusion matrix, objects ({rule})", counts.tolist(), labels),
        _matrix(f"Confusion matrix, shares of each true class ({rule})", shares.round(4).tolist(), labels),
        Chart("Precision and recall of masks (overlap 0.5)", "lines", "recall", "precision", lines=curve),
        Chart("F1 of masks against confidence (overlap 0.5)", "lines", "confidence", "F1", lines=f1),
    ]


def _matrix(title: str, rows: Sequence[Sequence[float]], labels: Sequence[str]) -> Chart:
    return Chart(title, "matrix", "predicted class", "true class", matrix=rows, labels=labels)


def _lines(
    classes: Sequence[str], present: Sequence[int], x: np.ndarray, y: np.ndarray
) -> dict[str, tuple[list[float], list[float]]]:
    """Their mean first, then a line for each class that has objects."""
    if not present:
        return {}
    points = x.round(4).tolist()
    mean = {"mean": (points, y[:, present].mean(1).round(4).tolist())}
    return mean | {classes[index]: (points, y[:, index].round(4).tolist()) for index in present}


def _mean(values: np.ndarray) -> float:
    """The mean over what is no NaN; 0 where there is nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else 0.0
