"""JSON files that hold one set of fields: recognised without being read into memory, then loaded whole.

Loaded, one takes about six times its size: 600 MB for COCO 2017's captions.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import orjson

from contracts.errors import SlipwayError

HEAD = 1 << 12


def mentions(path: Path, *names: str) -> bool:
    """Whether a file begins as a set of fields does, and each name stands in quotation marks somewhere in it."""
    with path.open("rb") as file:
        if not file.read(HEAD).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(f'"{name}"'.encode()) >= 0 for name in names)


def lists_in(path: Path, *names: str) -> list[list[Any]]:
    """The lists of these names.

    Raises:
        SlipwayError: when the file is no JSON or a list is missing; there are no rows to quarantine then.
    """
    try:
        content = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))  # NaN costs one caption and not the file
        except (ValueError, RecursionError):
            raise SlipwayError(f"{path} is not JSON: {error}. Was it cut off? Download it again.") from None
    for name in names:
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise SlipwayError(f"{path} has no list {name!r}, which such captions have: is it another kind of JSON?")
    return [content[name] for name in names]
