"""What becomes of a sheet, or of a part of a shard, once its pictures are looked at: records, and what was refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2

from contracts.records import Record, Rejected
from workloads.captioning.labels.hub import Part, records_of
from workloads.captioning.labels.looking import look_at
from workloads.captioning.labels.said import Sheet, Unusable
from workloads.captioning.settings import CaptioningParse


@dataclass(frozen=True)
class Rules:
    """What a worker must know besides its tasks; it travels to other processes."""

    raw: Path
    settings: CaptioningParse


def judge(rules: Rules, tasks: Sequence[Sheet | Part | Rejected]) -> list[Record | Rejected]:
    """What a chunk of tasks comes to, in their order."""
    cv2.setNumThreads(1)
    return [one for task in tasks for one in _judged(rules, task)]


def _judged(rules: Rules, task: Sheet | Part | Rejected) -> Iterator[Record | Rejected]:
    if isinstance(task, Rejected):
        yield task
    elif isinstance(task, Part):
        yield from records_of(task, rules.raw, rules.settings)
    else:
        yield _record(rules, task)


def _record(rules: Rules, sheet: Sheet) -> Record | Rejected:
    try:
        picture = look_at(rules.raw / sheet.picture)
    except Unusable as error:
        return Rejected(sheet.file, sheet.row, sheet.picture, str(error), whole=True)
    inputs = {"image": sheet.picture, "row": -1, **picture.inputs}
    targets = {"captions": sheet.captions, "scene": sheet.scene}
    split = sheet.division.settle(sheet.split, picture.sha256)
    return Record(sheet.picture, picture.sha256, inputs, targets, split, picture.likeness)
