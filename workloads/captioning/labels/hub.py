"""Hugging Face data sets as parquet or Arrow shards: a row with a picture's bytes and its caption or captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from contracts.errors import SlipwayError
from contracts.records import Record, Rejected
from contracts.splits import Division
from workloads.captioning.labels import shards
from workloads.captioning.labels.captions import LEFT_OUT, distinct, judged
from workloads.captioning.labels.listing import Listing, some, suffix
from workloads.captioning.labels.looking import Picture, look
from workloads.captioning.labels.said import Caption, Columns, Unusable, show
from workloads.captioning.labels.splits import split_in_name, split_named
from workloads.captioning.labels.tables import CAPTIONS, PICTURES, columns_in, named

if TYPE_CHECKING:
    from workloads.captioning.settings import CaptioningParse


@dataclass(frozen=True)
class Part:
    """One part of a shard: its columns, its first row and how many (`size`), the split that its file is named after.

    `rows` are those whose pictures are wanted, where not all are.
    """

    file: str
    index: int
    columns: Columns
    start: int
    size: int
    split: str | None
    division: Division
    rows: frozenset[int] | None = None


class Hub:
    """See `formats.Reader`. What is read here are the footers of the files and a column of splits, where there is one."""

    name: ClassVar = "hub"

    def __init__(self, listing: Listing, files: list[str], settings: CaptioningParse) -> None:
        self.listing, self.files, self.settings = listing, files, settings
        self.columns = list(dict.fromkeys(name for file in files for name in self._shard(file).schema.names))
        self.read = {file: self._columns(file) for file in files}

    @classmethod
    def files_in(cls, listing: Listing, files: list[str], settings: CaptioningParse) -> list[str]:
        """Shards with a column of pictures: data sets that `datasets` has cached bring others."""
        found = [file for file in files if suffix(file) in shards.SUFFIXES]
        return [file for file in found if shards.picture_columns(shards.opened(listing.root / file).schema)]

    def _shard(self, file: str) -> shards.Shard:
        return shards.opened(self.listing.root / file)

    def _columns(self, file: str) -> Columns:
        schema = self._shard(file).schema
        pictures = shards.picture_columns(schema)
        image = named(pictures, self.settings.image_column, PICTURES) or pictures[0]
        found = columns_in(schema.names, self.settings, image=image)
        if found.caption is None and self.settings.caption is None:
            raise SlipwayError(
                f"{file} has no column of captions (one of {', '.join(CAPTIONS)}); it has {some(schema.names, 20)}."
                " Set captioning.parse.caption_column to it, or captioning.parse.caption to what they all say"
            )
        return found

    @property
    def expected(self) -> int:
        return sum(self._shard(file).starts[-1] for file in self.files)

    def parts(self) -> Iterator[Part]:
        for file in self.files:
            starts = self._shard(file).starts
            for index, (start, end) in enumerate(pairwise(starts)):
                yield Part(file, index, self.read[file], start, end - start, split_in_name(file), self.division)

    @cached_property
    def division(self) -> Division:
        """What becomes of the official splits, which a column names, or else the files."""
        found: set[str | None] = set()
        for file, columns in self.read.items():
            shard = self._shard(file)
            if columns.split is None:
                found.add(split_in_name(file))
                continue
            for index in range(len(shard.starts) - 1):
                for value in shard.part(index, [columns.split]).column(0).unique().to_pylist():
                    found.add(_named_or_none(value) or split_in_name(file))
        return Division.of(found, self.settings.shares)


def _named_or_none(value: Any) -> str | None:
    try:
        return split_named(value)
    except Unusable:
        return None


@dataclass
class Draft:
    """A picture of a part, the row that it stands in first, and its captions there and in later rows."""

    row: int
    picture: Picture
    split: str | None
    captions: list[Caption] = field(default_factory=list)


def records_of(part: Part, root: Path, settings: CaptioningParse) -> Iterator[Record | Rejected]:
    """The records of a part, after what was refused of it. Rows of one picture (the same bytes) are one record."""
    drafts: dict[tuple[str, str | None], Draft] = {}
    for row, values in _wanted(part, root):
        try:
            if (data := _bytes(part, values)) is None:
                raise Unusable("picture not found: the row holds no bytes of it")
            split = split_named(values.get(part.columns.split or "")) or part.split
            picture = look(data)
        except Unusable as error:
            yield Rejected(part.file, row, show(_path_in(values[part.columns.image])), str(error), whole=True)
            continue
        said = settings.caption if part.columns.caption is None else values[part.columns.caption]
        captions, faults = judged(said, part.file, row, settings)
        yield from faults
        drafts.setdefault((picture.sha256, split), Draft(row, picture, split)).captions.extend(captions)
    for draft in drafts.values():
        yield from _record(draft, part)


def _wanted(part: Part, root: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of the pictures that are wanted: of a picture that one of `part.rows` holds, all of them."""
    if part.rows is None:
        yield from _rows(part, root)
        return
    chosen = {_bytes(part, values) for row, values in _rows(part, root) if row in part.rows} - {None}
    for row, values in _rows(part, root):
        if row in part.rows or _bytes(part, values) in chosen:
            yield row, values


def _bytes(part: Part, values: dict[str, Any]) -> bytes | None:
    return shards.bytes_in(values[part.columns.image])


def _rows(part: Part, root: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows that are kept, one decoded at a time."""
    columns = part.columns
    wanted = dict.fromkeys(name for name in (columns.image, columns.caption, columns.split, *columns.keep) if name)
    table = shards.opened(root / part.file).part(part.index, list(wanted))
    for place in range(table.num_rows):
        if not columns.keeps({name: _value(table[name][place]) for name in columns.keep}):
            continue
        yield part.start + place, {name: _value(table[name][place]) for name in wanted}


def _value(cell: Any) -> Any:
    """What a cell holds; the sign of undecodable bytes for text that is no UTF-8."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return "\ufffd"


def _record(draft: Draft, part: Part) -> Iterator[Record | Rejected]:
    key = f"{part.file}#{draft.row}"
    captions, twice = distinct(draft.captions)
    yield from twice
    if not captions:
        yield Rejected(part.file, draft.row, key, LEFT_OUT, whole=True)
        return
    inputs = {"image": part.file, "row": draft.row, **draft.picture.inputs}
    split = part.division.settle(draft.split, draft.picture.sha256)
    yield Record(key, draft.picture.sha256, inputs, {"captions": captions, "scene": ""}, split, draft.picture.likeness)


def _path_in(cell: Any) -> str:
    """What names a picture in a cell that holds it: the path that it once had."""
    return str(cell.get("path") or "") if isinstance(cell, dict) else ""
