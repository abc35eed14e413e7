"""Rows of label files in any order, gathered to one sheet a picture through a temporary database on disk, not in memory."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from contracts.records import Rejected
from contracts.splits import Division
from workloads.captioning.labels.captions import LEFT_OUT, distinct, judged
from workloads.captioning.labels.said import Caption, Said, Sheet, show

if TYPE_CHECKING:
    from workloads.captioning.settings import CaptioningParse

# A row without a caption stands for one whose captions were all refused.
TABLE = "CREATE TABLE said (picture TEXT, file TEXT, row, caption TEXT, split TEXT, scene TEXT)"
IN_ORDER = """
    SELECT said.* FROM said JOIN (SELECT picture AS name, min(rowid) AS first FROM said GROUP BY picture) ON picture = name
    ORDER BY first, said.rowid
"""


def gathered(said: Iterable[Said | Rejected], settings: CaptioningParse, title: str) -> Iterator[Sheet | Rejected]:
    """One sheet a picture, in the order in which the pictures are named first, after all that was refused on the way.

    `title` names the data set where something is said of its splits. Memory: some bytes for each picture that is lost.
    """
    with closing(sqlite3.connect("")) as shelf:  # SQLite's name for a database that is on disk and goes with its connection
        shelf.execute(TABLE)
        yield from _filled(shelf, said, settings)
        shelf.execute("CREATE INDEX by_picture ON said (picture)")
        splits = (split for (split,) in shelf.execute("SELECT DISTINCT split FROM said"))
        division = Division.of(splits, settings.shares)
        if division.note:
            print(f"splits of {title}: {division.note}", flush=True)
        for picture, rows in groupby(shelf.execute(IN_ORDER), key=lambda row: row[0]):
            yield from _sheet(picture, list(rows), division)


def _filled(shelf: sqlite3.Connection, said: Iterable[Said | Rejected], settings: CaptioningParse) -> Iterator[Rejected]:
    """Put every caption that can be used on the shelf, and give what cannot. A picture is lost once, in whatever rows."""
    lost: set[bytes] = set()
    for one in said:
        if isinstance(one, Rejected):
            digest = hashlib.blake2b(one.value.encode(), digest_size=12).digest()
            yield replace(one, whole=one.whole and digest not in lost)
            lost.add(digest)
            continue
        captions, refused = judged(one.captions, one.file, one.row, settings)
        yield from refused
        texts = [caption.text for caption in captions] or [None]
        rows = [(one.picture, one.file, one.row, text, one.split, one.scene) for text in texts]
        shelf.executemany("INSERT INTO said VALUES (?, ?, ?, ?, ?, ?)", rows)


def _sheet(picture: str, rows: list[tuple[Any, ...]], division: Division) -> Iterator[Sheet | Rejected]:
    """The sheet of a picture, after the captions that it has twice or under another split."""
    split = next((row[4] for row in rows if row[4]), None)
    captions: list[Caption] = []
    for _, file, row, text, other, _ in rows:
        if other and other != split:
            reason = f"picture is in two splits: {split} before, here {other}"
            yield Rejected(file, row, show(text or picture), reason)
        elif text is not None:
            captions.append(Caption(text, file, row))
    texts, twice = distinct(captions)
    yield from twice
    _, file, row, *_ = rows[0]
    if not texts:
        yield Rejected(file, row, show(picture), LEFT_OUT, whole=True)
        return
    scene = next((row[5] for row in rows if row[5]), "")
    yield Sheet(picture, texts, file, row, division, split, scene)
