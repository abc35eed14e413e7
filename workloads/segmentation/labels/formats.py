"""Which format the labels are in: set by the user, or found by looking at the files.

Where several are there the first of COCO, Labelbox, YOLO, LabelMe, VOC is read: the richest first, so that a set that
somebody converted is read from what it was converted from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from contracts.errors import SlipwayError
from contracts.records import Rejected
from workloads.segmentation.labels import coco, labelbox, labelme, voc, yolo
from workloads.segmentation.labels.drawn import Sheet
from workloads.segmentation.labels.listing import IMAGE_SUFFIXES, Listing, some
from workloads.segmentation.settings import SegmentationParse


class Reader(Protocol):
    """One format. `tasks` gives, in the files' own order, what a worker makes a sheet of, without opening any image.

    `classes` are the names that the files declare, in their order; `official` the splits that they name; `expected`
    about how many tasks there are.
    """

    name: str
    listing: Listing
    expected: int
    official: set[str]

    @property
    def classes(self) -> tuple[str, ...]: ...

    def tasks(self) -> Iterator[Any]: ...


READERS: dict[str, Any] = {
    "coco": coco.Coco,
    "labelbox": labelbox.Labelbox,
    "yolo": yolo.Yolo,
    "labelme": labelme.LabelMe,
    "voc": voc.Voc,
}
SHEETS: dict[str, Callable[[Any, Path], Sheet | Rejected]] = {
    "coco": coco.sheet,
    "labelbox": labelbox.sheet,
    "yolo": yolo.sheet,
    "labelme": labelme.sheet,
    "voc": voc.sheet,
}
LOOKED_FOR = {
    "coco": "a .json file with images, annotations and categories",
    "labelbox": "a .csv file with the columns 'External ID' and 'Label'",
    "yolo": "a dataset.yaml with names, or .txt files in a labels folder with a classes.txt",
    "labelme": ".json files with shapes",
    "voc": ".xml files with <annotation>",
}


def reader_of(raw: Path, settings: SegmentationParse) -> tuple[Reader, list[str]]:
    """The reader for a download, and the formats that were seen besides and are not read.

    Raises:
        SlipwayError: when no labels or no images are there; says what was looked for and what was found.
    """
    listing = Listing(raw, labels=settings.labels, images=settings.images)
    wanted = list(READERS) if settings.format == "auto" else [settings.format]
    seen = {name: files for name in wanted if (files := READERS[name].files_in(listing))}
    if not seen and settings.labels is not None and len(wanted) == 1 and listing.labels:
        seen = {wanted[0]: listing.labels}
    if not seen:
        raise SlipwayError(
            f"no labels found in {raw}. Looked for {'; '.join(LOOKED_FOR[name] for name in wanted)}. Found"
            f" {len(listing.images):,} images and {len(listing.labels):,} possible label files ({some(listing.labels)})."
            " Set parse.format and parse.labels if they are called otherwise"
        )
    if not listing.images:
        raise SlipwayError(
            f"no images found in {raw / (settings.images or '')}, only labels ({some(listing.labels)}): were they"
            f" downloaded? Endings known: {' '.join(IMAGE_SUFFIXES)}"
        )
    name, *others = seen
    kind = READERS[name]
    reader = kind(listing, seen[name], names=settings.classes) if name == "yolo" else kind(listing, seen[name])
    return reader, others
