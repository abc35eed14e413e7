"""Flickr30k's results.csv (picture| number| caption) and Flickr8k's and 30k's token files (picture#number, tab, caption)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from contracts.records import Rejected
from workloads.captioning.labels.listing import Listing, suffix
from workloads.captioning.labels.rows import HEAD, opened
from workloads.captioning.labels.said import Said, Unusable, show
from workloads.captioning.labels.splits import WORDS, split_in_name, split_in_path

if TYPE_CHECKING:
    from workloads.captioning.settings import CaptioningParse

HEADER = ["image_name", "comment_number", "comment"]
_TOKEN = re.compile(r"(?P<picture>[^\t]+)#\d+\t(?P<caption>.*)", re.DOTALL)
_SPLIT_LIST = re.compile(rf"(?:^|[_./-])({'|'.join(WORDS)})_?images\.txt$", re.IGNORECASE)


class Flickr:
    """See `formats.Reader`. Lines are streamed; the lists of images that Flickr8k brings are its official splits."""

    name: ClassVar = "flickr"
    columns: ClassVar[list[str]] = []

    def __init__(self, listing: Listing, files: list[str], settings: CaptioningParse) -> None:
        self.listing, self.files = listing, files
        self.lists = [file for file in listing.labels if _SPLIT_LIST.search(file)]

    @classmethod
    def files_in(cls, listing: Listing, files: list[str], settings: CaptioningParse) -> list[str]:
        """Files of either kind. Lemmatized captions, which Flickr8k brings too, are no captions to learn."""
        texts = [file for file in files if suffix(file) in (".csv", ".txt", ".token")]
        return [file for file in texts if "lemma" not in file.lower() and _is_flickr(first_line(listing, file))]

    def said(self) -> Iterator[Said | Rejected]:
        for file in self.files:
            piped = _is_piped(first_line(self.listing, file))
            with opened(self.listing.root / file) as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip() and not (piped and number == 1):
                        yield self._said(file, number, line, piped=piped)

    def _said(self, file: str, number: int, line: str, *, piped: bool) -> Said | Rejected:
        if piped:
            cells = line.split("|", 2)
            name, caption = cells[0], cells[-1]
            if len(cells) < 3:
                return Rejected(file, number, show(line), f"wrong number of fields: {len(cells)} and not 3")
        elif match := _TOKEN.fullmatch(line):
            name, caption = match["picture"], match["caption"]
        else:
            return Rejected(file, number, show(line), "line is not picture#number, a tab and a caption")
        try:
            split = self._listed.get(name.strip()) or split_in_name(file)
            picture = self.listing.picture(name, file, split=split)
        except Unusable as error:
            return Rejected(file, number, show(name), str(error), whole=True)
        return Said(picture, file, number, caption, split or split_in_path(picture))

    @cached_property
    def _listed(self) -> dict[str, str]:
        """The split of each picture that a list of a split names."""
        found: dict[str, str] = {}
        for file in self.lists:
            split = WORDS[_SPLIT_LIST.findall(file)[0].lower()]
            with opened(self.listing.root / file) as lines:
                found.update({line.strip(): split for line in lines if line.strip()})
        return found


def first_line(listing: Listing, file: str) -> str:
    with opened(listing.root / file) as lines:
        return lines.readline(HEAD)


def _is_flickr(line: str) -> bool:
    return _is_piped(line) or _TOKEN.fullmatch(line) is not None


def _is_piped(line: str) -> bool:
    return [cell.strip().lower() for cell in line.split("|")] == HEADER
