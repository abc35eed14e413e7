"""What the label files say, before it is judged: one sheet an image, one shape an object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from contracts.records import Rejected

SHOWN = 120


@dataclass(frozen=True)
class Shape:
    """One object as a label file states it. `parts` are flat lists x1, y1, x2, y2... that nobody has checked yet.

    `unit` tells whether they are pixels or shares of the image's width and height; `said` is shown when it is refused.
    """

    row: int | str
    name: Any
    parts: list[Any]
    said: Any
    kind: Literal["polygon", "line"] = "polygon"
    unit: Literal["pixels", "shares"] = "pixels"


@dataclass(frozen=True)
class Sheet:
    """All labels of one image. `image` is its path below raw (the record's key); `file` and `row` say where they stand.

    `size` is the (width, height) that the labels were made for, where the file states it. `faults` are labels that could
    not even be read as shapes.
    """

    image: str
    file: str
    row: int | str
    shapes: list[Shape]
    split: str | None = None
    size: tuple[int, int] | None = None
    faults: list[Rejected] = field(default_factory=list)


class Unusable(Exception):
    """A label or an image that cannot be used; the text is the reason, a fixed phrase before any colon."""


def show(value: Any) -> str:
    """`value` as one line of at most SHOWN characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = " ".join(text[: 4 * SHOWN].split()).encode("utf-8", "replace").decode()
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def class_name(text: Any, aliases: Mapping[str, str]) -> str:
    """The name of a class as the records hold it: lower case, underscores for spaces, spelled as `aliases` says.

    Raises:
        Unusable: when `text` is no name.
    """
    name = plain_name(text) if isinstance(text, str) else ""
    if not name:
        raise Unusable("no class name")
    return aliases.get(name, name)


@lru_cache(1024)
def plain_name(text: str) -> str:
    """Lower case, and an underscore for each run of spaces."""
    return "_".join(text.lower().split())
