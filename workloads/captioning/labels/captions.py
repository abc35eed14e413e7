"""Captions judged by themselves, before anybody looks at a picture: what is text of a sensible length, and what is not."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from contracts.records import Rejected
from workloads.captioning.labels.said import UNDECODABLE, Caption, Unusable, decodable, kind, show

if TYPE_CHECKING:
    from workloads.captioning.settings import CaptioningParse

# What programs write into a table where they have no value.
NOTHING = frozenset({"nan", "null", "none", "n/a", "<na>"})
LEFT_OUT = "picture left out: none of its captions is usable"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
MAX_LITERAL = 100_000


def judged(value: Any, file: str, row: int | str, settings: CaptioningParse) -> tuple[list[Caption], list[Rejected]]:
    """The captions of one row, a text or a list of texts: those that can be used, and those that cannot."""
    captions: list[Caption] = []
    refused: list[Rejected] = []
    several = isinstance(value, list | tuple) and len(value) > 0
    for one in value if several else [value]:
        try:
            captions.append(Caption(plain(one, settings), file, row))
        except Unusable as error:
            refused.append(Rejected(file, row, show(one), str(error)))
    return captions, refused


def plain(value: Any, settings: CaptioningParse) -> str:
    """A caption on one line, its runs of white space made one space each.

    Raises:
        Unusable: when it is no text, says nothing, or has not the length that the settings ask for, in characters.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise Unusable(f"no caption: {'null' if value is None else 'NaN'}")
    if isinstance(value, list | tuple) and not value:
        raise Unusable("no caption: an empty list")
    if not isinstance(value, str):
        raise Unusable(f"caption is no text: it is {kind(value)}")
    text = " ".join(value.split())
    if not text:
        raise Unusable("empty caption")
    if text.lower() in NOTHING:
        raise Unusable(f"no caption: {text!r} stands for nothing")
    if not decodable(text):
        raise Unusable(UNDECODABLE)
    if control := CONTROL.search(text):
        raise Unusable(f"caption holds a control character: {control[0]!r}")
    if len(text) < settings.shortest:
        raise Unusable(f"caption is too short: {len(text)} characters, parse.shortest is {settings.shortest}")
    if len(text) > settings.longest:
        raise Unusable(f"caption is too long: {len(text):,} characters, parse.longest is {settings.longest:,}")
    return text


def distinct(captions: Iterable[Caption]) -> tuple[list[str], list[Rejected]]:
    """The captions of one picture, each once and in their order, and those that were there twice."""
    first: dict[str, Caption] = {}
    twice: list[Rejected] = []
    for one in captions:
        if one.text in first:
            place = f"{first[one.text].file} row {first[one.text].row}"
            twice.append(Rejected(one.file, one.row, show(one.text), f"same caption twice: the picture has it from {place}"))
        else:
            first[one.text] = one
    return list(first), twice


def unpacked(cell: Any) -> Any:
    """The list that a cell of a table writes as JSON, or as Python does (pandas, for one); any other cell as it is.

    No code in a cell ever runs: names and calls are no literals.
    """
    if not isinstance(cell, str) or not (cell.lstrip().startswith("[") and cell.rstrip().endswith("]")):
        return cell
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        found = _literal(cell)
    return found if isinstance(found, list) else cell


def _literal(cell: str) -> Any:
    try:
        return ast.literal_eval(cell.strip()) if len(cell) <= MAX_LITERAL else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
