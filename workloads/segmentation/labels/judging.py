"""One sheet of labels and its image, judged: a record with what is usable, and a reason for everything that is not."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2

from contracts.records import Record, Rejected
from workloads.segmentation.labels.collector import without_collector
from workloads.segmentation.labels.drawn import Shape, Sheet, Unusable, class_name, show
from workloads.segmentation.labels.formats import SHEETS
from workloads.segmentation.labels.geometry import polygons_of
from workloads.segmentation.labels.pictures import Picture, look

# Images whose outlines are judged in one pass of numpy and GEOS: half the calls are saved, and few labels are in memory.
AT_ONCE = 16


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


@dataclass
class Draft:
    """A sheet whose image is sound, with the shapes that have a class; what was lost already does not count refused classes."""

    sheet: Sheet
    picture: Picture
    names: list[str] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    refused: list[Rejected] = field(default_factory=list)
    lost: int = 0


def judge(rules: Rules, tasks: Sequence[Any]) -> list[Judged | Rejected]:
    """What a chunk of tasks comes to, in their order."""
    cv2.setNumThreads(1)
    results: list[Judged | Rejected] = []
    with warnings.catch_warnings(), without_collector():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata in files that it reads well
        for start in range(0, len(tasks), AT_ONCE):
            results += _judged(tasks[start : start + AT_ONCE], rules)
    return results


def _judged(tasks: Sequence[Any], rules: Rules) -> Iterator[Judged | Rejected]:
    sheets = [task if isinstance(task, Rejected) else SHEETS[rules.format](task, rules.raw) for task in tasks]
    drafts = [[sheet] if isinstance(sheet, Rejected) else draft(sheet, rules) for sheet in sheets]
    good = [one for one in drafts if isinstance(one, Draft)]
    shapes = [shape for one in good for shape in one.shapes]
    sizes = [(one.picture.width, one.picture.height) for one in good for _ in one.shapes]
    outlined = zip(*polygons_of(shapes, sizes, rules.line_width), strict=True)
    for one in drafts:
        yield from judge_draft(one, list(islice(outlined, len(one.shapes))), rules) if isinstance(one, Draft) else one


def draft(sheet: Sheet, rules: Rules) -> Draft | list[Rejected]:
    """What is to be judged of one sheet, or why its image is lost."""
    try:
        picture = look(rules.raw / sheet.image)
    except Unusable as error:
        return [*sheet.faults, Rejected(sheet.image, "", sheet.image, str(error), whole=True)]
    if sheet.size is not None and sheet.size != (picture.width, picture.height):
        return [*sheet.faults, _other_size(sheet, sheet.size, picture)]
    drawn = Draft(sheet, picture, lost=len(sheet.faults))
    for shape in sheet.shapes:
        try:
            name = class_name(shape.name, rules.aliases)
        except Unusable as error:
            drawn.refused.append(_refused(sheet, shape, str(error)))
            drawn.lost += 1
            continue
        if rules.classes is not None and name not in rules.classes:
            drawn.refused.append(_refused(sheet, shape, f"unknown class: {name} is not among parse.classes"))
            continue
        drawn.names.append(name)
        drawn.shapes.append(shape)
    return drawn


def judge_draft(one: Draft, outlined: list[tuple[list[Any], list[str]]], rules: Rules) -> list[Judged | Rejected]:
    """The record of one image, after everything that was refused of it; `outlined` is what `polygons_of` made of its shapes.

    An image that loses every label it had is left out: it would be trained on as a picture with nothing on it. Labels of
    classes that the user does not want do not count as lost here.
    """
    sheet, picture = one.sheet, one.picture
    faults = [
        _refused(sheet, shape, reason)
        for shape, (_, reasons) in zip(one.shapes, outlined, strict=True)
        for reason in reasons
    ]
    objects: list[dict[str, Any]] = []
    twice: list[Rejected] = []
    seen: set[tuple[Any, ...]] = set()
    for name, shape, (parts, _) in zip(one.names, one.shapes, outlined, strict=True):
        identity = (name, *(part.tobytes() for part in parts))
        if parts and identity in seen:
            twice.append(_refused(sheet, shape, "same object twice"))
        elif parts:
            seen.add(identity)
            objects.append({"name": name, "polygons": parts})
    results: list[Judged | Rejected] = [*sheet.faults, *one.refused, *faults, *twice]
    if not objects and (one.lost or faults):
        reason = "image left out: none of its labels is usable, and it is no picture with nothing on it"
        return [*results, Rejected(sheet.file, sheet.row, sheet.image, reason, whole=True)]
    group = _group(sheet.image, rules.group_pattern)
    inputs = {"image": sheet.image, "width": picture.width, "height": picture.height}
    record = Record(sheet.image, group, inputs, {"objects": objects}, sheet.split, picture.likeness)
    return [*results, Judged(record, sheet.file, sheet.row)]


def _refused(sheet: Sheet, shape: Shape, reason: str) -> Rejected:
    return Rejected(sheet.file, shape.row, show(shape.said), reason)


def _other_size(sheet: Sheet, size: tuple[int, int], picture: Picture) -> Rejected:
    turned = f", EXIF orientation {picture.orientation} applied" if picture.orientation != 1 else ""
    reason = f"labels are for another size: the image is {picture.width} x {picture.height}{turned}"
    return Rejected(sheet.file, sheet.row, f"{size[0]} x {size[1]}", reason, whole=True)


def _group(path: str, pattern: str | None) -> str:
    match = re.search(pattern, path) if pattern is not None else None
    return (match[1] or "") if match else ""
