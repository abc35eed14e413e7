"""Pascal VOC: one XML file an image with boxes, which become rectangles; coordinates are taken as they stand.

A file with a document type is refused: that is where XML hides what expands or reads other files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from contracts.records import Rejected
from workloads.segmentation.labels.drawn import Shape, Sheet, Unusable, show
from workloads.segmentation.labels.geometry import box
from workloads.segmentation.labels.labelme import beside
from workloads.segmentation.labels.listing import Listing
from workloads.segmentation.labels.splits import split_in_path

HEAD = 1 << 12
MAX_BYTES = 1 << 24


@dataclass(frozen=True)
class Page:
    """A label file and the image of the same name, None where the file itself must say."""

    file: str
    image: str | None
    split: str | None


class Voc:
    """See `formats.Reader`. Splits are those of ImageSets/Main, else those of the folders."""

    name = "voc"
    classes: tuple[str, ...] = ()

    def __init__(self, listing: Listing, files: list[str]) -> None:
        self.listing, self.files = listing, files
        self.expected = len(files)
        self.listed = image_sets(listing)
        self.official = set(self.listed.values()) or {split for split in map(split_in_path, listing.images) if split}

    @staticmethod
    def files_in(listing: Listing) -> list[str]:
        return [name for name in listing.with_suffix(".xml") if is_voc(listing.root / name)]

    def tasks(self) -> Iterator[Page | Rejected]:
        for file in self.files:
            try:
                image = self.listing.image(file)
            except Unusable:
                image = None
            split = self.listed.get(Path(file).stem) if self.listed else split_in_path(image or file)
            yield Page(file, image, split)


def image_sets(listing: Listing) -> dict[str, str]:
    """Splits by image name, from ImageSets/Main/{train,val,test}.txt."""
    found: dict[str, str] = {}
    for split in ("test", "val", "train"):  # an image that is listed twice is trained on once: it is no test image then
        for name in listing.with_suffix(".txt"):
            if name.lower().endswith(f"imagesets/main/{split}.txt"):
                lines = (listing.root / name).read_text(encoding="utf-8", errors="replace").splitlines()
                found.update({line.split()[0]: split for line in lines if line.strip()})
    return found


def is_voc(path: Path) -> bool:
    """Whether an XML file begins with VOC's `annotation`."""
    with path.open("rb") as file:
        return b"<annotation" in file.read(HEAD)


def sheet(page: Page, root: Path) -> Sheet | Rejected:
    """The boxes of a label file, or why it has none."""
    content = (root / page.file).read_bytes()
    try:
        tree = parsed(content)
        image = page.image or _image(page.file, tree.findtext("filename"), root)
    except Unusable as error:
        return Rejected(page.file, "", show(content[:1000].decode("utf-8", "replace")), str(error), whole=True)
    shapes: list[Shape] = []
    faults: list[Rejected] = []
    for number, one in enumerate(tree.findall("object"), start=1):
        row = f"object {number}"
        said = " ".join("".join(one.itertext()).split())
        try:
            shapes.append(Shape(row, one.findtext("name"), [_corners(one)], said))
        except Unusable as error:
            faults.append(Rejected(page.file, row, show(said), str(error)))
    return Sheet(image, page.file, "", shapes, page.split, _size(tree), faults)


def parsed(content: bytes) -> ElementTree.Element:
    """The document, if it has no document type.

    Raises:
        Unusable: when it has one, is too long, or is not well-formed.
    """
    if len(content) > MAX_BYTES:
        raise Unusable(f"XML is too long: {len(content):,} bytes")
    reader = expat.ParserCreate()
    reader.StartDoctypeDeclHandler = _refuse
    try:
        reader.Parse(content, True)
        return ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise Unusable(f"not XML: {error}") from None


def _refuse(*declaration: object) -> None:
    raise Unusable("XML has a document type: DOCTYPE and ENTITY are not read")


def _image(file: str, name: str | None, root: Path) -> str:
    folders = ("", "../JPEGImages/", "../images/", "../Images/")
    for folder in folders:
        try:
            return beside(file, folder + name if name else None, root)
        except Unusable:
            continue
    raise Unusable(f"image not found: neither one named like this file nor {name!r}")


def _corners(one: ElementTree.Element) -> list[float]:
    area = one.find("bndbox")
    if area is None:
        raise Unusable("object has no bndbox")
    try:
        return box(*(float(area.findtext(side, "nothing")) for side in ("xmin", "ymin", "xmax", "ymax")))
    except ValueError as error:
        raise Unusable(f"coordinate is not a number: {error}") from None


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = int(tree.findtext("size/width", "0")), int(tree.findtext("size/height", "0"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None
