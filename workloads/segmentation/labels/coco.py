"""COCO instances JSON: polygons, run-length masks, and boxes where an annotation has nothing finer.

A file is loaded whole (about six times its size in memory: 3 GB for one of 500 MB), one file at a time: COCO puts
its annotations in any order, so that no image is complete before the end.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from contracts.errors import SlipwayError
from contracts.records import Rejected
from workloads.segmentation.labels.collector import without_collector
from workloads.segmentation.labels.drawn import Shape, Sheet, Unusable, show
from workloads.segmentation.labels.geometry import extent
from workloads.segmentation.labels.listing import Listing
from workloads.segmentation.labels.rle import outlines
from workloads.segmentation.labels.splits import split_in_name, split_in_path

HEAD = 1 << 16


@dataclass(frozen=True)
class Entry:
    """One image with its annotations as they stand in the file; `names` are the categories that they use."""

    image: str
    file: str
    row: str
    size: tuple[int, int] | None
    split: str | None
    annotations: list[dict[str, Any]]
    names: dict[Any, Any]


class Coco:
    """See `formats.Reader`."""

    name = "coco"

    def __init__(self, listing: Listing, files: list[str]) -> None:
        instances = [file for file in files if "instances" in file.rsplit("/", 1)[-1].lower()]
        self.listing, self.files = listing, instances or files
        self.expected = len(listing.images)
        named = {split_in_name(file) for file in self.files}
        self.official = {split for split in (named if named != {None} else set(map(split_in_path, listing.images))) if split}

    @staticmethod
    def files_in(listing: Listing) -> list[str]:
        return [name for name in listing.with_suffix(".json") if is_coco(listing.root / name)]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for file in self.files for name in categories(self.listing.root / file)))

    def tasks(self) -> Iterator[Entry | Rejected]:
        for file in self.files:
            yield from self._images(file)

    def _images(self, file: str) -> Iterator[Entry | Rejected]:
        content = whole(self.listing.root / file)
        names = {
            one["id"]: one.get("name") for one in content["categories"] if isinstance(one, dict) and _hashable(one.get("id"))
        }
        known: dict[Any, Any] = {}
        for position, image in enumerate(content["images"]):
            identity = image.get("id") if isinstance(image, dict) else None
            if type(identity) not in (int, str):
                yield Rejected(file, f"image number {position + 1}", show(image), "image has no id", whole=True)
            elif identity in known:
                yield Rejected(file, f"image {identity}", show(image), "image id is there twice")
            else:
                known[identity] = image
        grouped, astray = _grouped(content["annotations"], known, file)
        del content
        yield from astray
        for identity, image in known.items():
            yield self._entry(file, image, grouped.get(identity, []), names)

    def _entry(self, file: str, image: dict[str, Any], annotations: list[Any], names: dict[Any, Any]) -> Entry | Rejected:
        row, name = f"image {image['id']}", image.get("file_name")
        try:
            if not isinstance(name, str):
                raise Unusable("no image name: file_name is missing")
            found = self.listing.image(name)
        except Unusable as error:
            return Rejected(file, row, show(name if isinstance(name, str) else image), str(error), whole=True)
        width, height = image.get("width"), image.get("height")
        size = (width, height) if type(width) is int and type(height) is int and width > 0 and height > 0 else None
        numbers = {one.get("category_id") for one in annotations if _hashable(one.get("category_id"))}
        used = {number: names.get(number) for number in numbers}
        return Entry(found, file, row, size, split_in_name(file) or split_in_path(found), annotations, used)


def _grouped(annotations: list[Any], known: dict[Any, Any], file: str) -> tuple[dict[Any, list[Any]], list[Rejected]]:
    """Annotations by image, and those that belong to none."""
    grouped: dict[Any, list[Any]] = {}
    astray: list[Rejected] = []
    for position, one in enumerate(annotations):
        identity = one.get("image_id") if isinstance(one, dict) else None
        if _hashable(identity) and identity in known:
            grouped.setdefault(identity, []).append(one)
        else:
            reason = "annotation of an unknown image" if isinstance(one, dict) else "annotation is not a set of fields"
            astray.append(Rejected(file, annotation_row(one, position), show(one), reason))
    return grouped, astray


def annotation_row(one: Any, position: int) -> str:
    """How the quarantine names an annotation: by its id, else by its place."""
    return f"annotation {one['id']}" if isinstance(one, dict) and "id" in one else f"annotation number {position + 1}"


def _hashable(value: Any) -> bool:
    return isinstance(value, int | float | str)


def is_coco(path: Path) -> bool:
    """Whether a JSON file has COCO's three lists, found without reading it into memory."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        if b'"shapes"' in head or not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(b'"%s"' % key) >= 0 for key in (b"images", b"annotations", b"categories"))


def whole(path: Path) -> dict[str, list[Any]]:
    """The content of a COCO file with its three lists.

    Raises:
        SlipwayError: when it is no JSON or a list is missing; there are no rows to quarantine then.
    """
    try:
        with without_collector():
            content = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        content = _with_nan(path, error)
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise SlipwayError(f"{path} has no list {part!r}, which COCO instances files have: is it another kind of JSON?")
    return content


def _with_nan(path: Path, error: orjson.JSONDecodeError) -> Any:
    """NaN and Infinity, which Python writes and JSON does not know, cost one annotation and not the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        raise SlipwayError(f"{path} is not JSON: {error}. Was it cut off? Download it again.") from None


def categories(path: Path) -> list[str]:
    """The category names in the order of their ids, without loading what surrounds them."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(b'"categories"')
        while place >= 0:
            text = content[place + len(b'"categories"') : place + (1 << 23)].decode("utf-8", "ignore").lstrip(": \t\r\n")
            try:
                found, _ = json.JSONDecoder().raw_decode(text)
                if isinstance(found, list):
                    return _in_order(found)
            except ValueError:
                pass
            place = content.find(b'"categories"', place + 1)
    return _in_order(whole(path)["categories"])


def _in_order(found: list[Any]) -> list[str]:
    named = [one for one in found if isinstance(one, dict) and isinstance(one.get("name"), str)]
    return [one["name"] for one in sorted(named, key=lambda one: one["id"] if type(one.get("id")) is int else 0)]


def sheet(entry: Entry, root: Path) -> Sheet:
    """The shapes of an image's annotations."""
    shapes: list[Shape] = []
    faults: list[Rejected] = []
    for position, one in enumerate(entry.annotations):
        row = annotation_row(one, position)
        try:
            shapes.append(Shape(row, _category(one, entry.names), _parts(one), one))
        except Unusable as error:
            faults.append(Rejected(entry.file, row, show(one), str(error)))
    return Sheet(entry.image, entry.file, entry.row, shapes, entry.split, entry.size, faults)


def _category(one: dict[str, Any], names: dict[Any, Any]) -> Any:
    identity = one.get("category_id")
    if not _hashable(identity) or names.get(identity) is None:
        raise Unusable(f"unknown category: category_id {identity!r} is not in the file's list")
    return names[identity]


def _parts(one: dict[str, Any]) -> list[Any]:
    if one.get("iscrowd"):
        raise Unusable("iscrowd: a crowd is no single object")
    segmentation = one.get("segmentation")
    if isinstance(segmentation, dict):
        return outlines(segmentation)  # pyright: ignore[reportReturnType]
    if isinstance(segmentation, list) and segmentation:
        return segmentation if all(isinstance(part, list) for part in segmentation) else [segmentation]
    if segmentation not in (None, []):
        raise Unusable(f"segmentation is neither polygons nor a mask: {show(segmentation)[:40]}")
    return [_box(one.get("bbox"))]


def _box(area: Any) -> list[Any]:
    if not (isinstance(area, list) and len(area) == 4 and all(type(side) in (int, float) for side in area)):
        raise Unusable("no segmentation and no bbox of four numbers")
    return extent(*area)
