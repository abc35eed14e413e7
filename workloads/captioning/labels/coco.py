"""COCO captions JSON: images, and annotations with a caption each, in any order. One file at a time is loaded whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from contracts.records import Rejected
from workloads.captioning.labels.listing import Listing, suffix
from workloads.captioning.labels.objects import lists_in, mentions
from workloads.captioning.labels.said import Said, Unusable, show
from workloads.captioning.labels.splits import split_in_name, split_in_path

if TYPE_CHECKING:
    from workloads.captioning.settings import CaptioningParse

LISTS = ("images", "annotations")


class Coco:
    """See `formats.Reader`."""

    name: ClassVar = "coco"
    columns: ClassVar[list[str]] = []

    def __init__(self, listing: Listing, files: list[str], settings: CaptioningParse) -> None:
        self.listing, self.files = listing, files

    @classmethod
    def files_in(cls, listing: Listing, files: list[str], settings: CaptioningParse) -> list[str]:
        wanted = (*LISTS, "caption")
        return [file for file in files if suffix(file) == ".json" and mentions(listing.root / file, *wanted)]

    def said(self) -> Iterator[Said | Rejected]:
        for file in self.files:
            images, annotations = lists_in(self.listing.root / file, *LISTS)
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
