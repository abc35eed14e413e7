"""Which data sets lie in a download and what format each has: set by the user, or found by looking at the files.

Every top folder may be a data set of its own. Where one holds several formats the first of hub, metadata, Karpathy,
Flickr, COCO, table is read: the ones that are hardest to mistake come first, and Karpathy's has the splits that the other
files of its pictures lack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from contracts.errors import SlipwayError
from contracts.records import Rejected
from workloads.captioning.labels.coco import Coco
from workloads.captioning.labels.flickr import Flickr
from workloads.captioning.labels.hub import Hub
from workloads.captioning.labels.karpathy import Karpathy
from workloads.captioning.labels.listing import Listing, some, suffix
from workloads.captioning.labels.rows import TABLES, columns_of
from workloads.captioning.labels.said import Said
from workloads.captioning.labels.shards import SUFFIXES
from workloads.captioning.labels.splits import split_in_path
from workloads.captioning.labels.tables import Metadata, Table

if TYPE_CHECKING:
    from workloads.captioning.settings import CaptioningParse


class Reader(Protocol):
    """One format. `said` gives, in the files' own order, what they say, without opening any picture.

    `columns` are those of its files, where the format leaves their names open.
    """

    name: Any
    columns: list[str]

    def said(self) -> Iterator[Said | Rejected]: ...


KINDS: dict[str, Any] = {one.name: one for one in (Hub, Metadata, Karpathy, Flickr, Coco, Table)}
LOOKED_FOR = {
    "hub": "parquet or Arrow files with a column of pictures",
    "metadata": "a metadata.jsonl or metadata.csv",
    "karpathy": "a .json file with images that have sentences with a raw text (dataset_coco.json)",
    "flickr": "a results.csv (image_name| comment_number| comment) or lines of picture#number, tab and caption",
    "coco": "a .json file with images and annotations that have a caption",
    "table": "a .csv, .tsv or .jsonl with a column of pictures and one of captions",
}


# What lies beside data sets and is none.
BESIDE = frozenset({"dataset_infos.json", "dataset_info.json", "state.json", "readme.txt", "license.txt", "licence.txt"})


@dataclass(frozen=True)
class DataSet:
    """The label files of a top folder ("" for the download itself) and their reader; `others` are formats not read."""

    folder: str
    files: list[str]
    reader: Reader | Hub
    others: tuple[str, ...]

    @property
    def title(self) -> str:
        """`coco in pexels/`."""
        return f"{self.reader.name} in {self.folder}/" if self.folder else self.reader.name


def data_sets(raw: Path, settings: CaptioningParse) -> tuple[Listing, list[DataSet]]:
    """The files of a download and the data sets in it, in the order of their folders.

    Raises:
        SlipwayError: when there is none, one lacks a column, or none has a column that the settings name.
    """
    listing = Listing(raw, labels=settings.labels)
    folders: dict[str, list[str]] = {}
    for file in listing.labels:
        folders.setdefault(top_folder(file), []).append(file)
    wanted = list(KINDS) if settings.format == "auto" else [settings.format]
    seen = {folder: _data_set(listing, folder, files, wanted, settings) for folder, files in sorted(folders.items())}
    found = [one for one in seen.values() if one is not None]
    if not found:
        raise SlipwayError(_nothing(listing, wanted))
    for folder in (folder for folder, one in seen.items() if one is None):
        _check_empty(listing, folder, folders[folder], wanted)
    if settings.labels is None:
        _tell_of_others(listing, folders)
    _check_columns(found, settings)
    return listing, found


def top_folder(file: str) -> str:
    """The top folder of a file; "" where it lies on top, or where the top folders are splits of one data set."""
    top, below, _ = file.partition("/")
    return top if below and split_in_path(f"{top}/") is None else ""


def _data_set(
    listing: Listing, folder: str, files: list[str], wanted: list[str], settings: CaptioningParse
) -> DataSet | None:
    seen = {name: kept for name in wanted if (kept := KINDS[name].files_in(listing, files, settings))}
    if not seen and settings.labels is not None and len(wanted) == 1:
        seen = {wanted[0]: files}
    if not seen:
        return None
    name, *others = seen
    read = _once(listing.root, seen[name])
    return DataSet(folder, read, KINDS[name](listing, read, settings), tuple(others))


def _check_empty(listing: Listing, folder: str, files: list[str], wanted: list[str]) -> None:
    """Say that a folder beside data sets holds files without captions; where it looks like a data set itself, that is an error.

    Raises:
        SlipwayError: when it holds pictures, tables or shards too: read as nothing, a whole set would be missing without a word.
    """
    num = sum(top_folder(name) == folder for name in listing.pictures)
    telling = [file for file in files if file.rsplit("/", 1)[-1].lower() not in BESIDE]
    here = f"{folder}/" if folder else "the top folder of the download"
    if not telling or (not num and not any(suffix(file) in (TABLES - {".txt"}) | SUFFIXES for file in telling)):
        print(f"captions: none in {here}, which holds {some(files)}", flush=True)
        return
    raise SlipwayError(
        f"no captions found in {listing.root / folder}, beside data sets that have some. Looked for"
        f" {'; '.join(LOOKED_FOR[name] for name in wanted)}. Found {num:,} pictures and {len(files):,} possible label files"
        f" ({some(files)}).{_columns_in(listing, files)} Set captioning.parse.image_column and caption_column if they are called"
        " otherwise, parse.labels to read one folder alone, or take these files out of the download"
    )


def _tell_of_others(listing: Listing, folders: Mapping[str, list[str]]) -> None:
    """Say which top folders hold neither label files nor pictures; of pictures that nobody names parse itself tells."""
    others: dict[str, list[str]] = {}
    for name in sorted(listing.names - set(listing.pictures)):
        others.setdefault(top_folder(name), []).append(name)
    for folder in others.keys() - folders.keys() - {""} - {top_folder(name) for name in listing.pictures}:
        print(f"captions: none in {folder}/, which holds {some(others[folder])}", flush=True)


def _columns_in(listing: Listing, files: list[str]) -> str:
    """A sentence on the columns of the first tables among some files; nothing where there is none."""
    tables = [file for file in files if suffix(file) in TABLES][:3]
    columns = "; ".join(f"{file} has the columns {some(columns_of(listing.root / file), 12)}" for file in tables)
    return f" {columns}." if columns else ""


def _once(root: Path, files: list[str]) -> list[str]:
    """Label files without copies of one another (archives bring them); shards are too large to compare."""
    kept: dict[tuple[int, bytes] | str, str] = {}
    for file in files:
        if suffix(file) in SUFFIXES:
            kept[file] = file
            continue
        with (root / file).open("rb") as content:
            identity = ((root / file).stat().st_size, hashlib.file_digest(content, "blake2b").digest())
        if kept.setdefault(identity, file) != file:
            print(f"{file} is a copy of {kept[identity]} and is not read again", flush=True)
    return list(kept.values())


def _check_columns(found: list[DataSet], settings: CaptioningParse) -> None:
    """Raises SlipwayError for a column that the settings name and no data set has: it would silently mean nothing."""
    columns = list(dict.fromkeys(name for one in found for name in one.reader.columns))
    lower = {name.lower() for name in columns}
    for setting, name in (("image_column", settings.image_column), ("caption_column", settings.caption_column)):
        if name is not None and name.lower() not in lower:
            raise SlipwayError(f"parse.{setting} = {name!r}: no file has that column; there are {some(columns, 20)}")
    for name in settings.keep:
        if name not in columns:
            raise SlipwayError(f"parse.keep names the column {name!r}, which no file has; there are {some(columns, 20)}")


def _nothing(listing: Listing, wanted: list[str]) -> str:
    return (
        f"no captions found in {listing.root}. Looked for {'; '.join(LOOKED_FOR[name] for name in wanted)}. Found"
        f" {len(listing.pictures):,} pictures and {len(listing.labels):,} possible label files ({some(listing.labels)})."
        f"{_columns_in(listing, listing.labels)} Set captioning.parse.format, labels, image_column and caption_column if they are called otherwise"
    )
