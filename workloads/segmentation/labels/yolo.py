"""YOLO label folders: one text file an image, one line an object, `class x1 y1 x2 y2 ...` in shares of width and height.

Five numbers are a box (`class cx cy width height`), as in every YOLO tool, and become its rectangle; but in a file that
also has polygons such a line may as well be a line of two points, and is refused. An image without a text file is a
picture with nothing on it, also as in every YOLO tool.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from contracts.errors import SlipwayError
from contracts.records import Rejected
from workloads.segmentation.labels.drawn import Shape, Sheet, Unusable, show
from workloads.segmentation.labels.geometry import box
from workloads.segmentation.labels.listing import Listing, some, stem
from workloads.segmentation.labels.splits import WORDS, split_in_path

LISTS = {"classes", "train", "val", "valid", "test", "trainval"}
NOT_LABELS = LISTS | {"readme", "readme.dataset", "readme.roboflow", "requirements"}
NAMES_FILES = ("classes.txt", "obj.names", "classes.names", "labelmap.txt", "labels.names")
MAX_YAML = 1 << 20


@dataclass(frozen=True)
class Page:
    """An image and the text file with its labels, None where it has none."""

    image: str
    file: str | None
    split: str | None
    names: dict[int, str]


class Yolo:
    """See `formats.Reader`."""

    name = "yolo"

    def __init__(self, listing: Listing, files: list[str], *, names: tuple[str, ...] | None = None) -> None:
        self.listing = listing
        self.texts = label_texts(listing)
        self.description = _description(listing)
        self.names = self._names(names)
        self.classes = tuple(name for _, name in sorted(self.names.items()))
        self.expected = len(listing.images)
        folders = self._split_folders()
        self.pages = [*self._listed(folders)] if folders else [(image, split_in_path(image)) for image in listing.images]
        self.official = {split for _, split in self.pages if split}

    @staticmethod
    def files_in(listing: Listing) -> list[str]:
        """The description, or text files that lie as YOLO's labels do. A lone text file beside an image is not enough."""
        if _description(listing):
            return [_description(listing)[0]]  # pyright: ignore[reportOptionalSubscript]
        texts = label_texts(listing)
        if not texts or not (_names_file(listing) or any(_labels_root(text) for text in texts)):
            return []
        stems = {stem(text) for text in texts}
        return texts if any(name in stems for name in listing.by_stem) else []

    def tasks(self) -> Iterator[Page | Rejected]:
        used: set[str] = set()
        for image, split in self.pages:
            file = self.label_of(image)
            used.add(file or "")
            yield Page(image, file, split, self.names)
        for text in self.texts:
            if text not in used and _labels_root(text) and self._is_astray(text):
                yield Rejected(text, "", stem(text), "image not found: no file of that name in the download", whole=True)

    def _is_astray(self, text: str) -> bool:
        """Whether no image at all belongs to a label file (one in a split that dataset.yaml leaves out is no fault)."""
        return stem(text) not in self.listing.by_stem

    def label_of(self, image: str) -> str | None:
        """The label file of an image: the same path with labels for images, beside it, or the only one of that name."""
        folder, _, _ = image.rpartition("/")
        own = stem(image)
        candidates = self._by_stem.get(own, [])
        for text in candidates:
            there = text.rpartition("/")[0]
            if there == folder or _tail(there) == _tail(folder):
                return text
        return candidates[0] if len(candidates) == 1 and len(self.listing.by_stem.get(own, ())) == 1 else None

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for text in self.texts:
            found.setdefault(stem(text), []).append(text)
        return found

    def _names(self, names: tuple[str, ...] | None) -> dict[int, str]:
        if self.description:
            return named(self.description[1].get("names"), self.description[0])
        if file := _names_file(self.listing):
            text = (self.listing.root / file).read_text(encoding="utf-8-sig", errors="replace")
            lines = [line.strip() for line in text.splitlines()]
            return {number: line for number, line in enumerate(lines) if line}
        if names:
            return dict(enumerate(names))
        raise SlipwayError(
            "YOLO labels hold numbers, and nothing says what they mean: add a classes.txt (one name a line) or a"
            " dataset.yaml with names, or set parse.classes"
        )

    def _split_folders(self) -> dict[str, list[str]]:
        """For each split that the description names, its paths below the download."""
        if not self.description:
            return {}
        file, content = self.description
        found: dict[str, list[str]] = {}
        for key, split in WORDS.items():
            paths = content.get(key)
            for path in [paths] if isinstance(paths, str) else paths if isinstance(paths, list) else []:
                place = _resolved(self.listing.root, file, content.get("path"), path)
                if place is not None:
                    found.setdefault(split, []).append(place)
                elif split == "test":
                    print(f"{file}: {key}: {path!r} is not in the download: there is no official test split", flush=True)
                else:
                    raise SlipwayError(f"{file}: {key}: {path!r} is neither a folder nor a list of images in the download")
        return found

    def _listed(self, folders: dict[str, list[str]]) -> Iterator[tuple[str, str | None]]:
        """Images with the split they are listed under, in the order of the paths. One listed twice is told apart later."""
        for split, places in folders.items():
            for place in places:
                if place.endswith(".txt"):
                    lines = (self.listing.root / place).read_text(encoding="utf-8", errors="replace").splitlines()
                    yield from ((self._image(line.strip(), place), split) for line in lines if line.strip())
                else:
                    inside = [image for image in self.listing.images if place == "." or image.startswith(place + "/")]
                    yield from ((image, split) for image in inside)

    def _image(self, line: str, place: str) -> str:
        try:
            return self.listing.image(line)
        except Unusable as error:
            raise SlipwayError(f"{place} lists {line!r}: {error}") from None


def label_texts(listing: Listing) -> list[str]:
    """Text files that may hold labels."""
    return [
        name
        for name in listing.with_suffix(".txt")
        if (stem(name) not in NOT_LABELS or _labels_root(name)) and name.rsplit("/", 1)[-1].lower() not in NAMES_FILES
    ]


def named(names: Any, file: str) -> dict[int, str]:
    """Class names by number, from a list or from {0: name}; raises SlipwayError for anything else."""
    if isinstance(names, list):
        return {number: str(name) for number, name in enumerate(names)}
    if isinstance(names, dict) and all(str(number).isdigit() for number in names):
        return {int(number): str(name) for number, name in names.items()}
    raise SlipwayError(f"{file}: names must be a list, or numbers with names, not {names!r}")


def _description(listing: Listing) -> tuple[str, dict[str, Any]] | None:
    """The first YAML file that describes a YOLO data set, the one highest up first."""
    for file in sorted(listing.with_suffix(".yaml", ".yml"), key=lambda name: (name.count("/"), name)):
        path = listing.root / file
        if path.stat().st_size > MAX_YAML:
            continue
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
        except (yaml.YAMLError, RecursionError):
            continue
        if isinstance(content, dict) and "names" in content and content.keys() & {*WORDS, "path", "nc"}:
            return file, content
    return None


def _names_file(listing: Listing) -> str | None:
    return next((name for name in listing.labels if name.rsplit("/", 1)[-1].lower() in NAMES_FILES), None)


def _labels_root(text: str) -> bool:
    return any(folder.lower().startswith("label") for folder in text.split("/")[:-1])


def _tail(folder: str) -> tuple[str, ...]:
    """A folder's path without the part that is called images or labels: images/train and labels-yolo/train are one."""
    parts = folder.split("/") if folder else []
    kinds = [index for index, part in enumerate(parts) if part.lower().startswith(("label", "image"))]
    return tuple(part.lower() for index, part in enumerate(parts) if index != (kinds[-1] if kinds else -1))


def _resolved(root: Path, file: str, base: Any, path: str) -> str | None:
    """Where a path of the description lies below the download: under `path`, beside the file, or at the top.

    Descriptions are written for another machine as often as not: folders above the download are dropped.
    """
    inner = "/".join(part for part in PurePosixPath(path.replace("\\", "/")).parts if part not in ("..", ".", "/"))
    starts = [Path(file).parent / base] if isinstance(base, str) else []
    for start in [*starts, Path(file).parent, Path()]:
        for end in dict.fromkeys((path, inner)):
            place = Path(os.path.normpath(root / start / end))
            if place.exists() and place.is_relative_to(os.path.normpath(root)):
                return place.relative_to(os.path.normpath(root)).as_posix()
    return None


def sheet(page: Page, root: Path) -> Sheet | Rejected:
    """The shapes of a label file, or why it has none."""
    if page.file is None:
        return Sheet(page.image, page.image, "", [], page.split)
    try:
        text = (root / page.file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return Rejected(page.file, "", page.image, "text is not UTF-8", whole=True)
    if "\\n" in text:
        reason = "literal backslash-n: the program that wrote this file wrote two characters for a line break"
        return Rejected(page.file, 1, show(text), reason, whole=True)
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    polygons = any(len(words) > 5 for _, words in lines)
    shapes: list[Shape] = []
    faults: list[Rejected] = []
    for number, words in lines:
        try:
            shapes.append(shape(words, number, page.names, polygons=polygons))
        except Unusable as error:
            faults.append(Rejected(page.file, number, show(" ".join(words)), str(error)))
    return Sheet(page.image, page.file, "", shapes, page.split, faults=faults)


def shape(words: list[str], row: int, names: dict[int, str], *, polygons: bool) -> Shape:
    """One line of a label file; `polygons` tells whether the file has any.

    Raises:
        Unusable: when it is neither an outline nor a box of a known class.
    """
    try:
        number, *numbers = map(float, words)
    except ValueError as error:
        raise Unusable(f"not a number: {error}") from None
    if not number.is_integer() or int(number) not in names:
        raise Unusable(f"unknown class: {words[0]} is not among the {len(names)} that are named ({some(names.values(), 3)})")
    if not all(map(math.isfinite, numbers)):
        raise Unusable("coordinate is NaN or infinite")
    if len(numbers) == 4 and polygons:
        raise Unusable("five numbers among polygons: a box and a line of two points look the same")
    if len(numbers) == 4:
        x, y, width, height = numbers
        numbers = box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    if len(numbers) < 4:
        raise Unusable("fewer than 3 points")
    return Shape(row, names[int(number)], [numbers], " ".join(words), unit="shares")
