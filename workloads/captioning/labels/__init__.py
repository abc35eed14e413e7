"""Label files of six formats to captioning records; the module of each format says what it may hold.

All captions of one picture make one record, whose group is the picture's content: the same bytes in two shards, folders or data
sets are in one split, whatever they are called. Labels are streamed; what stays in memory is the names of the files, one file of
COCO's or Karpathy's if the labels are such, and a few parts of shards if they are the Hub's.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import SlipwayError
from contracts.progress import Progress
from contracts.records import SPLITS, Record, Records, Rejected
from workloads.captioning.settings import CaptioningParse

if TYPE_CHECKING:
    import pyarrow as pa

    from workloads.captioning.labels.formats import DataSet
    from workloads.captioning.labels.hub import Part
    from workloads.captioning.labels.listing import Listing
    from workloads.captioning.labels.said import Sheet


def schema() -> tuple[pa.DataType, pa.DataType]:
    """Arrow types of inputs (path below raw, row of a shard or -1, size, hash) and targets (captions, scene)."""
    import pyarrow as pa

    inputs = pa.struct(
        [
            ("image", pa.string()),
            ("row", pa.int32()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("sha256", pa.string()),
        ]
    )
    return inputs, pa.struct([("captions", pa.list_(pa.string())), ("scene", pa.string())])


def parse(raw: Path, settings: CaptioningParse, *, processes: int) -> Iterator[Record | Rejected]:
    """Records and refused rows of each data set, in the order of its label files, the same whatever `processes` is.

    Raises:
        SlipwayError: when no captions are found, a column that is wanted is missing, a file cannot be read at all, or
            `keep` leaves nothing.
    """
    from workloads.captioning.labels.formats import data_sets

    listing, found = data_sets(raw, settings)
    for one in found:
        ignored = f" (also seen and not read: {', '.join(one.others)}; set captioning.parse.format to choose)"
        print(f"captions: {one.title}" + (ignored if one.others else ""), flush=True)
    return _examples(listing, found, settings, processes)


def _examples(
    listing: Listing, found: list[DataSet], settings: CaptioningParse, processes: int
) -> Iterator[Record | Rejected]:
    """Everything in the data sets, judged, with progress."""
    from contracts.ordered import in_order
    from workloads.captioning.labels.formats import top_folder
    from workloads.captioning.labels.judging import Rules, judge

    named: set[str] = set()
    work = functools.partial(judge, Rules(listing.root, settings))
    total = settings.most or len(listing.pictures) + sum(getattr(one.reader, "expected", 0) for one in found)
    anything = False
    with Progress("looking at pictures", total, unit=" pictures") as progress:
        tasks = _noted(_tasks(found, settings), named)
        for size, results in _unique(in_order(work, tasks, processes, size_of=lambda task: getattr(task, "size", 0))):
            anything = anything or bool(results)
            yield from results
            progress.advance(size)
    if settings.keep and not anything:
        raise SlipwayError(f"parse.keep = {dict(settings.keep)} leaves no row: is it the value that the column has?")
    if listing.elsewhere:
        place, name = next(iter(listing.elsewhere.items()))
        print(f"{len(listing.elsewhere):,} pictures were found by their names alone, such as {name} at {place}", flush=True)
    if settings.most is None and (unnamed := [picture for picture in listing.pictures if picture not in named]):
        places = Counter(f"{top_folder(picture) or '.'}/" for picture in unnamed)
        where = (
            f" ({', '.join(f'{count:,} in {place}' for place, count in places.items())})" if set(places) != {"./"} else ""
        )
        print(f"{len(unnamed):,} pictures are named by no label and are left out, such as {unnamed[0]}{where}", flush=True)


def _tasks(found: list[DataSet], settings: CaptioningParse) -> Iterator[Sheet | Part | Rejected]:
    from workloads.captioning.labels.choosing import chosen, parts_with, those
    from workloads.captioning.labels.gathering import gathered
    from workloads.captioning.labels.hub import Hub
    from workloads.captioning.labels.listing import some

    everywhere = [None] * len(found) if settings.most is None else chosen(found, settings.most)
    for one, places in zip(found, everywhere, strict=True):
        if isinstance(one.reader, Hub) and (note := one.reader.division.note):
            print(f"splits of {one.title}: {note}", flush=True)
        empty = True
        if isinstance(one.reader, Hub):
            tasks = one.reader.parts() if places is None else parts_with(one.reader.parts(), places)
        else:
            said = one.reader.said() if places is None else those(one.reader.said(), places)
            tasks = gathered(said, settings, one.title)
        for task in tasks:
            empty = empty and getattr(task, "size", 1) == 0
            yield task
        if empty and not settings.keep and places is None:
            raise SlipwayError(
                f"{one.title} has no row ({some(one.files)}): was it cut off? Download it again, or leave it out"
            )


def _noted(tasks: Iterator[Any], named: set[str]) -> Iterator[Any]:
    """The same tasks; the pictures that they name are added to `named`."""
    for task in tasks:
        if picture := getattr(task, "picture", None):
            named.add(picture)
        yield task


def _unique(chunks: Iterator[tuple[int, list[Record | Rejected]]]) -> Iterator[tuple[int, list[Record | Rejected]]]:
    """The first record of each picture; one of a later data set is refused. Memory: some 100 bytes a picture."""
    seen: set[bytes] = set()
    for size, results in chunks:
        kept: list[Record | Rejected] = []
        for one in results:
            digest = hashlib.blake2b(one.key.encode(), digest_size=12).digest() if isinstance(one, Record) else None
            if isinstance(one, Record) and digest in seen:
                reason = "picture has captions already: another data set of the download names it too"
                kept += [Rejected(one.key, "", caption, reason) for caption in one.targets["captions"]]
                continue
            kept.append(one)
            if digest:
                seen.add(digest)
        yield size, kept


def facts(raw: Path, records: Records, settings: CaptioningParse) -> dict[str, Any]:
    """How many records (`counts` by split) and captions there are, of which formats, and how long they are in words.

    `embedded` tells whether a record has a scene, by which captions of the embedded data set are judged.
    """
    import pyarrow.compute as pc

    from workloads.captioning.labels.formats import data_sets

    table = records.table if records.indices is None else records.table.take(records.positions)
    splits: Counter[str] = Counter()
    num_captions = num_words = most_words = 0
    embedded = False
    for batch in table.to_batches():
        targets = batch["targets"]
        captions = targets.field("captions").flatten()
        words = pc.count_substring(captions, " ").to_numpy(zero_copy_only=False) + 1  # pyright: ignore[reportAttributeAccessIssue]
        num_captions += len(captions)
        num_words += int(words.sum())
        most_words = max(most_words, int(words.max(initial=0)))
        embedded = embedded or bool(pc.any(pc.not_equal(targets.field("scene"), "")).as_py())  # pyright: ignore
        splits.update({one["values"]: one["counts"] for one in batch["split"].value_counts().to_pylist()})
    return {
        "num_records": table.num_rows,
        "num_captions": num_captions,
        "counts": {split: splits[split] for split in SPLITS},
        "formats": sorted({one.reader.name for one in data_sets(raw, settings)[1]}),
        "embedded": embedded,
        "mean_words": num_words / max(num_captions, 1),
        "most_words": most_words,
    }
