"""Tables with a row a picture, or a row a caption: an imagefolder's metadata, and CSV, TSV or JSONL files of any making."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from contracts.errors import SlipwayError
from contracts.records import Rejected
from workloads.captioning.labels.captions import unpacked
from workloads.captioning.labels.listing import Listing, some, suffix
from workloads.captioning.labels.rows import JSON_LINES, TABLES, Row, columns_of, rows_of
from workloads.captioning.labels.said import Columns, Said, Unusable, show
from workloads.captioning.labels.splits import split_in_name, split_in_path, split_named
from workloads.captioning.phrases import describe, understand

if TYPE_CHECKING:
    from workloads.captioning.settings import CaptioningParse

PICTURES = ("file_name", "image", "image_path", "file", "filename", "path", "image_name", "file_path", "filepath", "img")
CAPTIONS = ("caption", "captions", "text", "alt_text", "description", "sentences", "comment")


def named(columns: Sequence[str], chosen: str | None, usual: Sequence[str]) -> str | None:
    """The column that the settings chose where there is one of that name, else the first of the usual names, in any case."""
    for name in (*([chosen] if chosen else []), *usual):
        for column in columns:
            if column.strip().lower() == name.lower():
                return column
    return None


def columns_in(columns: Sequence[str], settings: CaptioningParse, *, image: str, scenes: bool = False) -> Columns:
    """The columns that are read, `image` being the one of the pictures."""
    return Columns(
        image,
        named(columns, settings.caption_column, CAPTIONS),
        named(columns, None, ("split",)),
        named(columns, None, ("scene",)) if scenes else None,
        {name: value for name, value in settings.keep.items() if name in columns},
    )


class Table:
    """See `formats.Reader`. Rows are streamed."""

    name: ClassVar = "table"
    scenes: ClassVar = False

    def __init__(self, listing: Listing, files: list[str], settings: CaptioningParse) -> None:
        self.listing, self.settings = listing, settings
        self.columns: list[str] = []
        self.read: dict[str, Columns] = {}
        for file in files:
            columns = columns_of(listing.root / file)
            self.columns += columns
            self.read[file] = self._columns(file, columns)

    @classmethod
    def files_in(cls, listing: Listing, files: list[str], settings: CaptioningParse) -> list[str]:
        """Tables with a column of pictures and one of captions; only files that are called tables are ever taken for any."""
        return [file for file in files if suffix(file) in TABLES and _is_table(listing, file, settings)]

    def _columns(self, file: str, columns: list[str]) -> Columns:
        image = named(columns, self.settings.image_column, PICTURES)
        found = columns_in(columns, self.settings, image=image or "", scenes=self.scenes)
        wanted, setting = ("pictures", "image_column") if not image else ("captions", "caption_column")
        if not image or (found.caption is None and self.settings.caption is None):
            usual = PICTURES if not image else CAPTIONS
            raise SlipwayError(
                f"{file} has no column of {wanted} (one of {', '.join(usual)}); it has {some(columns, 20)}."
                f" Set captioning.parse.{setting} to the one that is meant"
            )
        return found

    def said(self) -> Iterator[Said | Rejected]:
        for file, columns in self.read.items():
            for row in rows_of(self.listing.root / file, file):
                if isinstance(row, Rejected):
                    yield row
                elif columns.keeps(row.values):
                    yield self._said(row, file, columns)

    def _said(self, row: Row, file: str, columns: Columns) -> Said | Rejected:
        name = row.values.get(columns.image)
        try:
            split = split_named(row.values.get(columns.split)) if columns.split else None
            split = split or split_in_name(file)
            picture = self.listing.picture(name, file, split=split)
        except Unusable as error:
            return Rejected(file, row.number, show(name or row.values), str(error), whole=True)
        captions = self.settings.caption if columns.caption is None else row.values.get(columns.caption)
        if suffix(file) not in JSON_LINES:
            captions = unpacked(captions)
        scene = row.values.get(columns.scene) if columns.scene else None
        return Said(picture, file, row.number, captions, split or split_in_path(picture), scene_named(scene))


class Metadata(Table):
    """See `formats.Reader`. What `datasets.load_dataset("imagefolder")` reads, and what the embedded data set writes."""

    name: ClassVar = "metadata"
    scenes: ClassVar = True

    @classmethod
    def files_in(cls, listing: Listing, files: list[str], settings: CaptioningParse) -> list[str]:
        return [file for file in files if file.rsplit("/", 1)[-1].lower() in ("metadata.jsonl", "metadata.csv")]


def _is_table(listing: Listing, file: str, settings: CaptioningParse) -> bool:
    columns = columns_of(listing.root / file)
    picture = named(columns, settings.image_column, PICTURES)
    caption = named(columns, settings.caption_column, CAPTIONS)
    return picture is not None and (caption is not None or settings.caption is not None)


def scene_named(value: Any) -> str:
    """The scene that a row of the embedded data set names; nothing where a column of that name says anything else."""
    things, relation = understand(value) if isinstance(value, str) else ([], None)
    return value if things and len(things) == 1 + bool(relation) and describe(things, relation) == value else ""
