"""LabelMe: one JSON file beside each image, with polygons, rectangles, lines, line strips and circles."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.records import Rejected
from workloads.segmentation.labels.drawn import Shape, Sheet, Unusable, show
from workloads.segmentation.labels.geometry import box, circle, coordinates
from workloads.segmentation.labels.labelbox import loaded
from workloads.segmentation.labels.listing import Listing
from workloads.segmentation.labels.splits import split_in_path

HEAD = 1 << 16


@dataclass(frozen=True)
class Page:
    """A label file and the image of the same name, None where the file itself must say."""

    file: str
    image: str | None


class LabelMe:
    """See `formats.Reader`."""

    name = "labelme"
    classes: tuple[str, ...] = ()

    def __init__(self, listing: Listing, files: list[str]) -> None:
        self.listing, self.files = listing, files
        self.expected = len(files)
        self.official = {split for split in map(split_in_path, listing.images) if split}

    @staticmethod
    def files_in(listing: Listing) -> list[str]:
        return [name for name in listing.with_suffix(".json") if is_labelme(listing.root / name)]

    def tasks(self) -> Iterator[Page | Rejected]:
        for file in self.files:
            try:
                yield Page(file, self.listing.image(file))
            except Unusable:
                yield Page(file, None)


def is_labelme(path: Path) -> bool:
    """Whether a JSON file begins as LabelMe's do: `shapes` stands before the picture that it may hold."""
    with path.open("rb") as file:
        return b'"shapes"' in file.read(HEAD)


def sheet(page: Page, root: Path) -> Sheet | Rejected:
    """The shapes of a label file, or why it has none."""
    text = (root / page.file).read_bytes().decode("utf-8-sig", "surrogateescape")
    try:
        content = loaded(text)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            raise Unusable("label has no list of shapes")
        image = page.image or beside(page.file, content.get("imagePath"), root)
    except Unusable as error:
        return Rejected(page.file, "", show(text), str(error), whole=True)
    shapes: list[Shape] = []
    faults: list[Rejected] = []
    for number, one in enumerate(content["shapes"], start=1):
        row = f"shape {number}"
        try:
            shapes.append(shape(one, row))
        except Unusable as error:
            faults.append(Rejected(page.file, row, show(one), str(error)))
    width, height = content.get("imageWidth"), content.get("imageHeight")
    size = (width, height) if type(width) is int and type(height) is int and width > 0 and height > 0 else None
    return Sheet(image, page.file, "", shapes, split_in_path(image), size, faults)


def beside(file: str, name: Any, root: Path) -> str:
    """The image at the path that a label file in `file` gives, as long as that lies below the download.

    Raises:
        Unusable: when there is none.
    """
    if isinstance(name, str) and name and "\0" not in name:
        place = os.path.normpath(Path(file).parent / name.replace("\\", "/"))
        if not os.path.isabs(place) and not place.startswith("..") and (root / place).is_file():
            return Path(place).as_posix()
    raise Unusable(f"image not found: neither one named like this file nor {str(name)[:80]!r}")


def shape(one: Any, row: str) -> Shape:
    """One shape of a label file.

    Raises:
        Unusable: when it is no outline.
    """
    if not isinstance(one, dict) or not isinstance(one.get("points"), list):
        raise Unusable("shape has no list of points")
    kind, points = one.get("shape_type") or "polygon", one["points"]
    if any(not isinstance(point, list) or len(point) != 2 for point in points):
        raise Unusable("points are not a list of x and y")
    numbers = [value for point in points for value in point]
    match kind, len(points):
        case "polygon", _:
            return Shape(row, one.get("label"), [numbers], one)
        case "rectangle", 2:
            return Shape(row, one.get("label"), [box(*numbers)], one)
        case "rectangle", 4:
            return Shape(row, one.get("label"), [numbers], one)
        case "circle", 2:
            centre, edge = coordinates(numbers).tolist()
            return Shape(row, one.get("label"), [circle(centre, edge)], one)
        case (("line" | "linestrip"), _):
            return Shape(row, one.get("label"), [numbers], one, "line")
        case (("rectangle" | "circle"), count):
            raise Unusable(f"wrong number of points: a {kind} has 2, not {count}")
    raise Unusable(f"unknown shape_type: {str(kind)[:40]!r} is no polygon, rectangle, circle, line or linestrip")
