"""Karpathy's division of COCO, Flickr30k and Flickr8k (dataset_coco.json): images with their split and sentences inside them.

Karpathy, Fei-Fei 2015, arXiv 1412.2306. The split is what the file says and never the picture's folder: those that are
`restval`, which counts as train, lie in val2014. The file is loaded whole.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from contracts.records import Rejected
from workloads.captioning.labels.listing import Listing, suffix
from workloads.captioning.labels.objects import lists_in, mentions
from workloads.captioning.labels.said import Said, Unusable, kind, show
from workloads.captioning.labels.splits import split_named

if TYPE_CHECKING:
    from workloads.captioning.settings import CaptioningParse


class Karpathy:
    """See `formats.Reader`."""

    name: ClassVar = "karpathy"
    columns: ClassVar[list[str]] = []

    def __init__(self, listing: Listing, files: list[str], settings: CaptioningParse) -> None:
        self.listing, self.files = listing, files

    @classmethod
    def files_in(cls, listing: Listing, files: list[str], settings: CaptioningParse) -> list[str]:
        wanted = ("images", "filename", "sentences", "raw")
        return [file for file in files if suffix(file) == ".json" and mentions(listing.root / file, *wanted)]

    def said(self) -> Iterator[Said | Rejected]:
        for file in self.files:
            [images] = lists_in(self.listing.root / file, "images")
            for position, image in enumerate(images):
                yield from self._said(file, position, image)

    def _said(self, file: str, position: int, image: Any) -> Iterator[Said | Rejected]:
        """What an image's sentences say of it, or why it is lost."""
        row = _row("image", image, "imgid", position)
        if not isinstance(image, dict):
            yield Rejected(file, row, show(image), f"image is not a set of fields: it is {kind(image)}", whole=True)
            return
        name = _path(image)
        try:
            split = split_named(image.get("split"))
            picture = self.listing.picture(name, file, split=split)
        except Unusable as error:
            yield Rejected(file, row, show(name or image), str(error), whole=True)
            return
        sentences = image.get("sentences")
        if not isinstance(sentences, list) or not sentences:
            yield Rejected(file, row, show(picture), "no caption: the image has no list of sentences", whole=True)
            return
        for number, sentence in enumerate(sentences):
            place = f"{row}, {_row('sentence', sentence, 'sentid', number)}"
            if isinstance(sentence, dict):
                yield Said(picture, file, place, sentence.get("raw"), split)
            else:
                yield Rejected(file, place, show(sentence), f"sentence is not a set of fields: it is {kind(sentence)}")


def _path(image: dict[str, Any]) -> Any:
    """The file name, below the folder that some files name beside it; whatever stands there where it is no text."""
    folder, name = image.get("filepath"), image.get("filename")
    return posixpath.join(folder, name) if isinstance(folder, str) and isinstance(name, str) else name


def _row(what: str, value: Any, identity: str, position: int) -> str:
    """How a thing is called: by its own number where it has one, else by its place."""
    own = value.get(identity) if isinstance(value, dict) else None
    return f"{what} {own}" if type(own) in (int, str) else f"{what} number {position + 1}"
