"""The rows of CSV, TSV and JSONL files, streamed, whatever program wrote them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import orjson

from contracts.errors import SlipwayError
from contracts.records import Rejected
from workloads.captioning.labels.listing import suffix
from workloads.captioning.labels.said import UNDECODABLE, kind, show

# More in one cell is an unclosed quotation mark that swallows the file; more in one line is no JSONL.
MAX_CELL, MAX_LINE = 1 << 22, 1 << 24
HEAD = 1 << 16
LOOKED_AT = 100
DELIMITERS = ("\t", "|", ";", ",")
JSON_LINES = frozenset({".jsonl", ".ndjson"})
TABLES = JSON_LINES | {".csv", ".tsv", ".txt"}


@dataclass(frozen=True)
class Row:
    """One row: its number (a header is row 1) and its values by column."""

    number: int
    values: dict[str, Any]


def columns_of(path: Path) -> list[str]:
    """The columns of a table: its header, or the fields that the first LOOKED_AT rows of a JSONL file have."""
    if suffix(path.name) in JSON_LINES:
        rows = (row for row in islice(_json_lines(path, path.name), LOOKED_AT) if isinstance(row, Row))
        return list(dict.fromkeys(name for row in rows for name in row.values))
    with opened(path) as lines:
        return _header(lines.readline(HEAD))[1]


def rows_of(path: Path, file: str) -> Iterator[Row | Rejected]:
    """The rows of a table; `file` is what the quarantine calls it.

    Raises:
        SlipwayError: when a quotation mark is left open, a line never ends, or two columns have one name.
    """
    return _json_lines(path, file) if suffix(path.name) in JSON_LINES else _cells(path, file)


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """A file as text, whatever program saved it; bytes that are no UTF-8 come through as signs that are refused."""
    with path.open("rb") as file:
        wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    encoding, errors = ("utf-16", "replace") if wide else ("utf-8-sig", "surrogateescape")
    with path.open(newline="", encoding=encoding, errors=errors) as lines:
        yield lines


def _cells(path: Path, file: str) -> Iterator[Row | Rejected]:
    before = csv.field_size_limit(MAX_CELL)
    number = 1
    try:
        with opened(path) as lines:
            delimiter, columns = _header(lines.readline(HEAD))
            if len(set(columns)) < len(columns):
                raise SlipwayError(f"{file} has two columns of one name: {', '.join(columns)}")
            for number, cells in enumerate(csv.reader(lines, delimiter=delimiter), start=2):
                if len(cells) > len(columns):
                    reason = f"wrong number of fields: {len(cells)} where the header has {len(columns)}; quote the caption"
                    yield Rejected(file, number, show(delimiter.join(cells)), reason, whole=True)
                elif cells:
                    yield Row(number, dict(zip(columns, cells + [None] * (len(columns) - len(cells)), strict=True)))
    except csv.Error as error:
        raise SlipwayError(f"{file}: row {number + 1} cannot be read ({error}): is a quotation mark left open?") from None
    finally:
        csv.field_size_limit(before)


def _header(line: str) -> tuple[str, list[str]]:
    """The delimiter that a table's first line holds most of, and its column names."""
    delimiter = max(DELIMITERS, key=line.count)
    try:
        cells = next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        cells = []
    return delimiter, [cell.strip() for cell in cells]


def _json_lines(path: Path, file: str) -> Iterator[Row | Rejected]:
    with opened(path) as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE + 1), ""), start=1):
            if len(line) > MAX_LINE:
                raise SlipwayError(f"{file}: row {number} is longer than {MAX_LINE:,} characters: is it JSON lines?")
            if line.strip():
                yield _object(line, number, file)


def _object(line: str, number: int, file: str) -> Row | Rejected:
    try:
        values = orjson.loads(line.encode())
    except UnicodeEncodeError:
        return Rejected(file, number, show(line), UNDECODABLE, whole=True)
    except orjson.JSONDecodeError as error:
        try:
            values = json.loads(line)  # NaN, which Python writes and JSON does not know, costs one value and not the row
        except (ValueError, RecursionError):
            return Rejected(file, number, show(line), f"not JSON: {error}", whole=True)
    if not isinstance(values, dict):
        return Rejected(file, number, show(line), f"row is not a set of fields: it is {kind(values)}", whole=True)
    return Row(number, values)
