"""Labelbox exports: a CSV with the columns `External ID` (an image) and `Label` (outlines, as JSON or Python literals)."""

from __future__ import annotations

import ast
import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

import orjson

from contracts.errors import SlipwayError
from contracts.records import Rejected
from workloads.segmentation.labels.drawn import Shape, Sheet, Unusable, show
from workloads.segmentation.labels.geometry import NUMBERS, extent
from workloads.segmentation.labels.listing import NOT_FOUND, Listing, some
from workloads.segmentation.labels.splits import split_in_path

NAME, LABEL = "external id", "label"
# One cell may hold this many characters; more is an unclosed quotation mark that swallows the file.
MAX_CELL = 1 << 28
# Python's parser takes some 500 bytes of memory a character at worst; this is room for 40,000 points.
MAX_LITERAL = 1_000_000
CORNERS = itemgetter("x", "y")


@dataclass(frozen=True)
class Cell:
    """One row: the image it means and its text, not yet read."""

    image: str
    file: str
    row: int
    text: str
    split: str | None


class Labelbox:
    """See `formats.Reader`. Rows are streamed; no code in a cell ever runs."""

    name = "labelbox"
    classes: tuple[str, ...] = ()

    def __init__(self, listing: Listing, files: list[str]) -> None:
        self.listing, self.files = listing, files
        self.expected = len(listing.images)
        self.official = {split for split in map(split_in_path, listing.images) if split}

    @staticmethod
    def files_in(listing: Listing) -> list[str]:
        return [name for name in listing.with_suffix(".csv") if {NAME, LABEL} <= set(header(listing.root / name))]

    def tasks(self) -> Iterator[Cell | Rejected]:
        for file in self.files:
            yield from self._rows(file)

    def _rows(self, file: str) -> Iterator[Cell | Rejected]:
        with opened(self.listing.root / file) as lines:
            rows = csv.reader(lines)
            columns = _columns(next(rows, []))
            if not {NAME, LABEL} <= set(columns):
                raise SlipwayError(f"{file} needs the columns 'External ID' and 'Label'; it has {some(columns)}")
            name, label = columns.index(NAME), columns.index(LABEL)
            row = 1
            try:
                for row, cells in enumerate(rows, start=2):
                    if cells:
                        yield self._cell(file, row, cells, name, label)
            except csv.Error as error:
                raise SlipwayError(
                    f"{file}: row {row + 1} cannot be read ({error}): is a quotation mark left open?"
                ) from None

    def _cell(self, file: str, row: int, cells: list[str], name: int, label: int) -> Cell | Rejected:
        image = cells[name].strip() if name < len(cells) else ""
        if not image:
            return Rejected(file, row, show(",".join(cells)), "no image name: the External ID is empty", whole=True)
        try:
            image.encode()
            found = self.listing.image(image.split("?")[0] if "://" in image else image)
        except UnicodeEncodeError:
            return Rejected(file, row, show(image), "text is not UTF-8", whole=True)
        except Unusable as error:
            return Rejected(file, row, show(image), str(error), whole=True, absent=str(error).startswith(NOT_FOUND))
        return Cell(found, file, row, cells[label] if label < len(cells) else "", split_in_path(found))


def header(path: Path) -> list[str]:
    """The column names of a CSV file, lower case."""
    with opened(path) as lines:
        try:
            return _columns(next(csv.reader(lines), []))
        except csv.Error:
            return []


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A CSV file as text, whatever program saved it; bytes that are no UTF-8 come through as surrogates, to be refused."""
    with path.open("rb") as file:
        wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    before = csv.field_size_limit(min(MAX_CELL, sys.maxsize))
    try:
        with path.open(newline="", encoding="utf-16" if wide else "utf-8-sig", errors="surrogateescape") as lines:
            yield lines
    finally:
        csv.field_size_limit(before)


def _columns(cells: list[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def sheet(cell: Cell, root: Path) -> Sheet | Rejected:
    """The shapes of a row, or why it has none. An empty list of objects is a picture with nothing on it."""
    try:
        label = loaded(cell.text)
        if not isinstance(label, dict) or not isinstance(label.get("objects"), list):
            raise Unusable(f"label has no list of objects: it is {_kind(label)}")
    except Unusable as error:
        return Rejected(cell.file, cell.row, show(cell.text), str(error), whole=True)
    shapes: list[Shape] = []
    faults: list[Rejected] = []
    for thing in label["objects"]:
        try:
            shapes.append(shape(thing, cell.row))
        except Unusable as error:
            faults.append(Rejected(cell.file, cell.row, show(thing), str(error)))
    return Sheet(cell.image, cell.file, cell.row, shapes, cell.split, faults=faults)


def loaded(text: str) -> Any:
    """What a cell says: JSON, or the same as Python's `str` writes it (EPRI's labels are written so).

    NaN and Infinity, which Python writes and JSON does not know, are read, so that one bad number costs one object and
    not the row.

    Raises:
        Unusable: when the text is empty, or neither.
    """
    if not text.strip():
        raise Unusable("empty label")
    try:
        return orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError) as error:
        reason = str(error)
    if any("\udc80" <= character <= "\udcff" for character in text):
        raise Unusable("text is not UTF-8")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return _literal(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Unusable(f"not JSON: {reason}; and no Python literal either") from None


def _literal(text: str) -> Any:
    """The value of a Python literal as JSON would give it; names and calls are never looked up.

    Raises:
        ValueError, SyntaxError, TypeError, MemoryError, RecursionError: when it is none, is longer than MAX_LITERAL
            characters, or holds what JSON cannot (a set, bytes).
    """
    if len(text) > MAX_LITERAL:
        raise ValueError("too long")
    return orjson.loads(orjson.dumps(ast.literal_eval(text.strip())))


def shape(thing: Any, row: int) -> Shape:
    """One object of a label.

    Raises:
        Unusable: when it is no outline.
    """
    if not isinstance(thing, dict):
        raise Unusable(f"object is not a set of fields: it is {_kind(thing)}")
    name = thing.get("value") or thing.get("title")
    if "polygon" in thing:
        return Shape(row, name, [flat(thing["polygon"])], thing)
    if "line" in thing:
        return Shape(row, name, [flat(thing["line"])], thing, "line")
    if isinstance(area := thing.get("bbox"), dict):
        return Shape(row, name, [_corners(area)], thing)
    raise Unusable(f"object has no polygon, line or bbox: it has {some(map(str, thing))}")


def flat(points: Any) -> list[Any]:
    """[{"x": 1, "y": 2}, ...] as [1, 2, ...]; raises Unusable for anything else."""
    try:
        return list(chain.from_iterable(map(CORNERS, points)))
    except (KeyError, TypeError):
        raise Unusable("points are not a list of x and y") from None


def _corners(area: dict[str, Any]) -> list[Any]:
    sides: list[Any] = [area.get(side) for side in ("left", "top", "width", "height")]
    if not set(map(type, sides)) <= NUMBERS:
        raise Unusable("bbox needs left, top, width and height as numbers")
    return extent(*sides)


def _kind(value: Any) -> str:
    kinds = {type(None): "null", dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    return kinds.get(type(value), "a number")
