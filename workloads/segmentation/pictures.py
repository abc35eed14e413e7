"""Pictures read from disk and put before the graph in batches, the next read while the last is computed. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import cv2
import numpy as np

from contracts.errors import SlipwayError
from contracts.raw import RawInput
from workloads.segmentation.decoding import Instances, decode
from workloads.segmentation.letterbox import Letterbox

if TYPE_CHECKING:
    from contracts.records import Record
    from contracts.workload import Run
    from workloads.segmentation.settings import SegmentationEvaluate

Item = TypeVar("Item")

BATCH = 16
# Larger squares come in smaller batches, so that a batch's prototypes stay below about 100 MB; so do larger pictures.
BATCH_PIXELS, BATCH_BYTES = BATCH * 640 * 640, 256 << 20
NOTHING = Instances(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), [])
NO_PICTURE = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Seen(Generic[Item]):
    """An item, its picture (uint8 [height, width, 3], BGR) and what the graph found; or `error`, why there is no picture."""

    item: Item
    picture: np.ndarray
    found: Instances
    error: str | None = None


def look(
    run: Run,
    items: Iterable[Item],
    read: Callable[[Item], np.ndarray],
    settings: SegmentationEvaluate,
    *,
    size: int,
    confidence: float,
    many_labels: bool,
    skip_unreadable: bool = False,
) -> Iterator[Seen[Item]]:
    """What the graph finds in each item's picture, in order; `read` gives the picture, `size` is the square's side.

    Raises:
        SlipwayError: what `read` raises, unless `skip_unreadable`: then the item comes with its `error`.
    """
    with ThreadPoolExecutor(1) as reader:
        for batch in _ahead(reader, iter(items), read, size):
            place, outputs = 0, {}
            if squares := [one.square for one in batch if not one.error]:
                outputs = run("segment", images=np.stack(squares))
            for one in batch:
                if one.error:
                    if not skip_unreadable:
                        raise one.error
                    yield Seen(one.item, NO_PICTURE, NOTHING, str(one.error))
                    continue
                found = decode(
                    outputs["predictions"][place],
                    outputs["protos"][place],
                    one.geometry,
                    confidence=confidence,
                    iou=settings.iou,
                    max_detections=settings.max_detections,
                    many_labels=many_labels,
                )
                place += 1
                yield Seen(one.item, one.picture, found)


@dataclass(frozen=True)
class _Loaded(Generic[Item]):
    """An item whose picture was read and put in its square, or could not be."""

    item: Item
    picture: np.ndarray
    geometry: Letterbox
    square: np.ndarray
    error: SlipwayError | None = None


def _ahead(
    reader: ThreadPoolExecutor, items: Iterator[Item], read: Callable[[Item], np.ndarray], size: int
) -> Iterator[list[_Loaded[Item]]]:
    """Batches of loaded items; while one is used, `reader` loads the next."""
    coming = reader.submit(_batch, items, read, size)
    while batch := coming.result():
        coming = reader.submit(_batch, items, read, size)
        yield batch


def _batch(items: Iterator[Item], read: Callable[[Item], np.ndarray], size: int) -> list[_Loaded[Item]]:
    most, held = max(1, min(BATCH, BATCH_PIXELS // size**2)), 0
    batch: list[_Loaded[Item]] = []
    while len(batch) < most and held < BATCH_BYTES:
        try:
            item = next(items)
        except StopIteration:
            break
        batch.append(_load(item, read, size))
        held += batch[-1].picture.nbytes
    return batch


def _load(item: Item, read: Callable[[Item], np.ndarray], size: int) -> _Loaded[Item]:
    try:
        picture = read(item)
    except SlipwayError as error:
        return _Loaded(item, NO_PICTURE, Letterbox.fit(1, 1, size), NO_PICTURE, error)
    geometry = Letterbox.fit(picture.shape[1], picture.shape[0], size)
    return _Loaded(item, picture, geometry, geometry.apply(picture))


def read_raw(raw: RawInput) -> np.ndarray:
    """A picture as uint8 [height, width, 3], BGR, turned as its EXIF data ask.

    Raises:
        SlipwayError: when it cannot be read or decoded.
    """
    data = np.frombuffer(raw.read(), np.uint8)  # and not cv2.imread, which prints its own complaints
    try:
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error as error:  # more pixels than OpenCV agrees to hold, for one
        raise SlipwayError(f"{raw.place} cannot be decoded: {error.err}") from None
    if picture is None:
        raise SlipwayError(f"{raw.place} is not an image that OpenCV can decode ({data.size:,} bytes)")
    return picture


def read_record(root: Path, record: Record) -> np.ndarray:
    """The picture of a record, checked against the size its labels were made for.

    Raises:
        SlipwayError: when it is gone, cannot be decoded or has another size than when it was parsed.
    """
    path = root / record.inputs["image"]
    picture = read_raw(RawInput(record.key, path))
    size, parsed = (picture.shape[1], picture.shape[0]), (record.inputs["width"], record.inputs["height"])
    if size != parsed:
        raise SlipwayError(
            f"{path} is {size[0]} x {size[1]} pixels, its labels were parsed for {parsed[0]} x {parsed[1]}: run parse again"
        )
    return picture
