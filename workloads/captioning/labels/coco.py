"""COCO captions JSON: images, and annotations with a caption each, in any order.

A file is loaded whole (about six times its size in memory: 600 MB for COCO 2017's), one file at a time.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from contracts.errors import SlipwayError
from contracts.records import Rejected
from workloads.captioning.labels.listing import Listing, suffix
from workloads.captioning.labels.said import Said, Unusable, show
from workloads.captioning.labels.splits import split_in_name, split_in_path

if TYPE_CHECKING:
    from workloads.captioning.settings import CaptioningParse

HEAD = 1 << 12
LISTS = ("images", "annotations")


class Coco:
    """See `formats.Reader`."""

    name: ClassVar = "coco"
    columns: ClassVar[list[str]] = []

    def __init__(self, listing: Listing, files: list[str], settings: CaptioningParse) -> None:
        self.listing, self.files = listing, files

    @classmethod
    def files_in(cls, listing: Listing, files: list[str], settings: CaptioningParse) -> list[str]:
        return [file for file in files if suffix(file) == ".json" and is_coco(listing.root / file)]

    def said(self) -> Iterator[Said | Rejected]:
        for file in self.files:
            images, annotations = whole(self.listing.root / file)
            pictures: dict[Any, str | None] = {}
            for position, image in enumerate(images):
                if fault := self._picture(file, position, image, pictures):
                    yield fault
            del images
            yield from _captions(file, annotations, pictures)

    def _picture(self, file: str, position: int, image: Any, pictures: dict[Any, str | None]) -> Rejected | None:
        """Add to `pictures` the path of an image by its id, None where it is lost; gives why."""
        identity = image.get("id") if isinstance(image, dict) else None
        if not _is_identity(identity):
            return Rejected(file, f"image number {position + 1}", show(image), "image has no id", whole=True)
        row, name = f"image {identity}", image.get("file_name")
        if identity in pictures:
            return Rejected(file, row, show(image), "image id is there twice")
        pictures[identity] = None
        try:
            pictures[identity] = self.listing.picture(name, file, split=split_in_name(file))
        except Unusable as error:
            return Rejected(file, row, show(name or image), str(error), whole=True)
        return None


def _captions(file: str, annotations: list[Any], pictures: dict[Any, str | None]) -> Iterator[Said | Rejected]:
    """What the annotations say of the pictures; those of a picture that is lost already are passed over."""
    bare, split = set(pictures), split_in_name(file)
    for position, one in enumerate(annotations):
        row = f"annotation {one['id']}" if isinstance(one, dict) and "id" in one else f"annotation number {position + 1}"
        identity = one.get("image_id") if isinstance(one, dict) else None
        if not _is_identity(identity) or identity not in pictures:
            reason = "annotation of an unknown image" if isinstance(one, dict) else "annotation is not a set of fields"
            yield Rejected(file, row, show(one), reason)
            continue
        bare.discard(identity)
        if picture := pictures[identity]:
            yield Said(picture, file, row, one.get("caption"), split or split_in_path(picture))
    for identity, picture in pictures.items():
        if picture and identity in bare:
            yield Rejected(file, f"image {identity}", show(picture), "no caption: no annotation names it", whole=True)


def _is_identity(value: Any) -> bool:
    return type(value) in (int, str)


def is_coco(path: Path) -> bool:
    """Whether a JSON file has the lists and captions that COCO's have, found without reading it into memory."""
    with path.open("rb") as file:
        if not file.read(HEAD).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(b'"%s"' % key) >= 0 for key in (b"images", b"annotations", b"caption"))


def whole(path: Path) -> tuple[list[Any], list[Any]]:
    """The images and the annotations of a COCO file.

    Raises:
        SlipwayError: when it is no JSON or a list is missing; there are no rows to quarantine then.
    """
    try:
        content = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))  # NaN costs one annotation and not the file
        except (ValueError, RecursionError):
            raise SlipwayError(f"{path} is not JSON: {error}. Was it cut off? Download it again.") from None
    for part in LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise SlipwayError(f"{path} has no list {part!r}, which COCO captions have: is it another kind of JSON?")
    return content["images"], content["annotations"]
