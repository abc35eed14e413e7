"""Label files of five formats to segmentation records; the module of each format says what it may hold.

Polygons are in pixels of the image as `cv2.imread` gives it, EXIF orientation applied, inside its frame, to a hundredth of
a pixel. Labels are streamed; what stays in memory is the names of the files (and one COCO file, if the labels are COCO).
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import SlipwayError
from contracts.progress import Progress
from contracts.records import SPLITS, Record, Records, Rejected
from workloads.segmentation.settings import SegmentationParse

if TYPE_CHECKING:
    import pyarrow as pa

    from workloads.segmentation.labels.formats import Reader
    from workloads.segmentation.labels.judging import Judged, Rules


def schema() -> tuple[pa.DataType, pa.DataType]:
    """Arrow types of inputs (image path below raw, width, height) and targets (objects with a class name and polygons)."""
    import pyarrow as pa

    inputs = pa.struct([("image", pa.string()), ("width", pa.int32()), ("height", pa.int32())])
    polygons = pa.list_(pa.list_(pa.float32()))
    targets = pa.struct([("objects", pa.list_(pa.struct([("name", pa.string()), ("polygons", polygons)])))])
    return inputs, targets


def parse(raw: Path, settings: SegmentationParse, *, processes: int) -> Iterator[Record | Rejected]:
    """Records and refused rows in the order of the label files, the same whatever `processes` is.

    One label file may cover more than was downloaded. So Labelbox rows of images that are not there are no loss, as long
    as at least half of the images that are there have labels; otherwise the names do not fit, and those rows count.

    Raises:
        SlipwayError: when no labels or images are found, `group_pattern` cannot be used, or the rows of images that are not
            there count and are a larger share than `max_rejected`.
    """
    from contracts.splits import Division
    from workloads.segmentation.labels.formats import reader_of
    from workloads.segmentation.labels.judging import Rules

    check_pattern(settings.group_pattern)
    reader, others = reader_of(raw, settings)
    check_groups(settings.group_pattern, reader.listing.images)
    print(f"labels: {reader.name}" + _ignored(others), flush=True)
    division = Division.of(reader.official, settings.shares, things="images")
    if division.note:
        print(f"splits: {division.note}", flush=True)
    classes = None if settings.classes is None else frozenset(renamed(settings.classes, settings))
    rules = Rules(reader.name, raw, classes, aliases_of(settings), settings.line_width, settings.group_pattern)

    def examples() -> Iterator[Record | Rejected]:
        for result in _unique(_judged(reader, rules, processes, settings.max_rejected)):
            if isinstance(result, Rejected):
                yield result
                continue
            record = result.record
            split = division.settle(record.split, record.group or record.key)
            yield record if split == record.split else Record(**{**vars(record), "split": split})

    return examples()


def _ignored(others: list[str]) -> str:
    if not others:
        return ""
    return f" (also seen and not read: {', '.join(others)}; set segmentation.parse.format to choose)"


def _judged(reader: Reader, rules: Rules, processes: int, max_rejected: float) -> Iterator[Judged | Rejected]:
    """Everything the reader finds, judged, with progress."""
    from contracts.ordered import in_order
    from workloads.segmentation.labels.judging import judge

    named: set[str] = set()
    absent = 0
    with Progress("reading labels and images", reader.expected) as progress:
        for size, results in in_order(functools.partial(judge, rules), _noted(reader.tasks(), named), processes):
            yield from results
            absent += sum(isinstance(one, Rejected) and one.absent for one in results)
            progress.total = max(progress.total, progress.done + size)
            progress.advance(size)
    if unnamed := [image for image in reader.listing.images if image not in named]:
        print(f"{len(unnamed):,} images are named by no label and are left out, such as {unnamed[0]}", flush=True)
    if named and len(unnamed) > len(named) and absent > max_rejected * (absent + len(named)):
        raise SlipwayError(
            f"{absent:,} labels are of images that are not there, and {len(unnamed):,} of the {len(reader.listing.images):,}"
            f" images that are there have no labels, such as {unnamed[0]}: do the names in {reader.name}'s files and those of"
            f" the images fit? Raise parse.max_rejected = {max_rejected:g} if they do"
        )


def _noted(tasks: Iterator[Any], named: set[str]) -> Iterator[Any]:
    """The same tasks; the images that they name are added to `named`."""
    for task in tasks:
        if image := getattr(task, "image", None):
            named.add(image)
        yield task


def _unique(results: Iterator[Judged | Rejected]) -> Iterator[Judged | Rejected]:
    """The first record of each image; a later one is refused, naming the first. Memory: some 100 bytes an image."""
    seen: dict[bytes, tuple[str, int | str]] = {}
    for result in results:
        if isinstance(result, Rejected):
            yield result
            continue
        key = result.record.key
        digest = hashlib.blake2b(key.encode(), digest_size=12).digest()
        if digest in seen:
            file, row = seen[digest]
            place = f"{file} row {row}" if row else file
            yield Rejected(result.file, result.row, key, f"duplicate row: the image already has labels in {place}")
        else:
            seen[digest] = (result.file, result.row)
            yield result


def check_pattern(pattern: str | None) -> None:
    """Raises SlipwayError when `pattern` is no regular expression with a group."""
    if pattern is None:
        return
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise SlipwayError(f"parse.group_pattern = {pattern!r} is no regular expression: {error}") from None
    if not groups:
        raise SlipwayError(
            f"parse.group_pattern = {pattern!r} has no group: put parentheses round the part of the path that names what"
            " must stay together, as in '(Circuit[0-9]+)/'"
        )


def check_groups(pattern: str | None, images: list[str]) -> None:
    """Raises SlipwayError when `pattern` fits no image at all: every image would silently be a group of its own."""
    if pattern is not None and not any(re.search(pattern, image) for image in images):
        raise SlipwayError(
            f"parse.group_pattern = {pattern!r} fits none of the {len(images):,} images, such as {images[0]!r}"
        )


def aliases_of(settings: SegmentationParse) -> dict[str, str]:
    """The aliases with both sides spelled as records spell class names."""
    from workloads.segmentation.labels.drawn import plain_name

    return {plain_name(name): plain_name(other) for name, other in settings.aliases.items()}


def renamed(names: tuple[str, ...], settings: SegmentationParse) -> list[str]:
    """Class names as the records spell them, each once, in their order."""
    from workloads.segmentation.labels.drawn import plain_name

    aliases = aliases_of(settings)
    return list(dict.fromkeys(aliases.get(plain_name(name), plain_name(name)) for name in names))


def facts(raw: Path, records: Records, settings: SegmentationParse) -> dict[str, Any]:
    """Class names in the order of their ids, and what there is of each.

    The order is that of `settings.classes`, else the one the label files declare (YOLO names, COCO categories), else the
    alphabet. `objects` counts them by class, `counts` the records by split.

    Raises:
        SlipwayError: when no image has an object.
    """
    from workloads.segmentation.labels.formats import reader_of

    table = records.table if records.indices is None else records.table.take(records.positions)
    found: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    for batch in table.to_batches():
        objects = batch["targets"].field("objects").flatten()
        for column, counts in ((objects.field("name"), found), (batch["split"], splits)):
            counts.update({one["values"]: one["counts"] for one in column.value_counts().to_pylist()})
    if not found:
        raise SlipwayError(f"none of the {table.num_rows:,} images has a labelled object: are these the right labels?")
    declared = settings.classes if settings.classes is not None else reader_of(raw, settings)[0].classes
    classes = list(dict.fromkeys([*renamed(declared, settings), *sorted(found)]))
    return {
        "classes": classes,
        "comparable": ["classes"],
        "num_records": table.num_rows,
        "counts": {split: splits[split] for split in SPLITS},
        "objects": {name: found[name] for name in classes},
    }
