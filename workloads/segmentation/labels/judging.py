"""One sheet of labels and its image, judged: a record with what is usable, and a reason for everything that is not."""

from __future__ import annotations

import gc
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from contracts.records import Record, Rejected
from workloads.segmentation.labels.drawn import Sheet, Unusable, class_name, show
from workloads.segmentation.labels.formats import SHEETS
from workloads.segmentation.labels.geometry import polygons_of
from workloads.segmentation.labels.pictures import Picture, look


@dataclass(frozen=True)
class Rules:
    """What a worker must know besides the labels; it travels to other processes."""

    format: str
    raw: Path
    classes: frozenset[str] | None
    aliases: Mapping[str, str]
    line_width: float
    group_pattern: str | None


@dataclass(frozen=True)
class Judged:
    """A record and where its labels stood, for whoever finds a second one of the same image."""

    record: Record
    file: str
    row: int | str


def judge(rules: Rules, tasks: Sequence[Any]) -> list[Judged | Rejected]:
    """What a chunk of tasks comes to, in their order."""
    cv2.setNumThreads(1)
    results: list[Judged | Rejected] = []
    with warnings.catch_warnings(), _without_collector():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata in files that it reads well
        for task in tasks:
            sheet = task if isinstance(task, Rejected) else SHEETS[rules.format](task, rules.raw)
            results += [sheet] if isinstance(sheet, Rejected) else judge_sheet(sheet, rules)
    return results


@contextmanager
def _without_collector() -> Iterator[None]:
    """No cycle collection: a label is thousands of small dicts without a cycle, and looking for one costs half the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def judge_sheet(sheet: Sheet, rules: Rules) -> list[Judged | Rejected]:
    """The record of one image, after everything that was refused of it.

    An image that loses every label it had is left out: it would be trained on as a picture with nothing on it. Labels of
    classes that the user does not want do not count as lost here.
    """
    try:
        picture = look(rules.raw / sheet.image)
    except Unusable as error:
        return [*sheet.faults, Rejected(sheet.image, "", sheet.image, str(error), whole=True)]
    if sheet.size is not None and sheet.size != (picture.width, picture.height):
        return [*sheet.faults, _other_size(sheet, sheet.size, picture)]
    objects, refused, lost = _objects(sheet, picture, rules)
    lost += len(sheet.faults)
    results: list[Judged | Rejected] = [*sheet.faults, *refused]
    if lost and not objects:
        reason = "image left out: none of its labels is usable, and it is no picture with nothing on it"
        return [*results, Rejected(sheet.file, sheet.row, sheet.image, reason, whole=True)]
    group = _group(sheet.image, rules.group_pattern)
    inputs = {"image": sheet.image, "width": picture.width, "height": picture.height}
    record = Record(sheet.image, group, inputs, {"objects": objects}, sheet.split, picture.likeness)
    return [*results, Judged(record, sheet.file, sheet.row)]


def _objects(sheet: Sheet, picture: Picture, rules: Rules) -> tuple[list[dict[str, Any]], list[Rejected], int]:
    """The usable objects, the refused labels, and how many of those were lost to faults (not to their class)."""
    names: list[str] = []
    shapes = []
    refused: list[Rejected] = []
    lost = 0
    for shape in sheet.shapes:
        try:
            name = class_name(shape.name, rules.aliases)
        except Unusable as error:
            refused.append(Rejected(sheet.file, shape.row, show(shape.said), str(error)))
            lost += 1
            continue
        if rules.classes is not None and name not in rules.classes:
            reason = f"unknown class: {name} is not among parse.classes"
            refused.append(Rejected(sheet.file, shape.row, show(shape.said), reason))
            continue
        names.append(name)
        shapes.append(shape)
    polygons, faults = polygons_of(shapes, picture.width, picture.height, rules.line_width)
    for position, reason in faults:
        refused.append(Rejected(sheet.file, shapes[position].row, show(shapes[position].said), reason))
    objects: list[dict[str, Any]] = []
    seen: set[tuple[Any, ...]] = set()
    for name, shape, parts in zip(names, shapes, polygons, strict=True):
        identity = (name, *(part.tobytes() for part in parts))
        if parts and identity in seen:
            refused.append(Rejected(sheet.file, shape.row, show(shape.said), "same object twice"))
        elif parts:
            seen.add(identity)
            objects.append({"name": name, "polygons": parts})
    return objects, refused, lost + len(faults)


def _other_size(sheet: Sheet, size: tuple[int, int], picture: Picture) -> Rejected:
    turned = f", EXIF orientation {picture.orientation} applied" if picture.orientation != 1 else ""
    reason = f"labels are for another size: the image is {picture.width} x {picture.height}{turned}"
    return Rejected(sheet.file, sheet.row, f"{size[0]} x {size[1]}", reason, whole=True)


def _group(path: str, pattern: str | None) -> str:
    match = re.search(pattern, path) if pattern is not None else None
    return (match[1] or "") if match else ""
