"""What label files say of pictures, as it travels from the readers to whoever looks at the pictures."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from contracts.splits import Division

SHOWN = 120
UNDECODABLE = "text cannot be decoded: save the file as UTF-8"
_LOST = re.compile("[\ud800-\udfff\ufffd]")


@dataclass(frozen=True)
class Said:
    """One row of a label file: a picture (its path below raw), and what stands where its captions should be, unjudged."""

    picture: str
    file: str
    row: int | str
    captions: Any
    split: str | None = None
    scene: str = ""


@dataclass(frozen=True)
class Caption:
    """A caption that can be used, and where it stands."""

    text: str
    file: str
    row: int | str


@dataclass(frozen=True)
class Sheet:
    """A picture file with all its captions, which are good, and the split that is named; nobody has opened the picture yet."""

    picture: str
    captions: list[str]
    file: str
    row: int | str
    division: Division
    split: str | None = None
    scene: str = ""
    size: int = 1


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read; None is one that is not there. `keep` are values that a column must have."""

    image: str
    caption: str | None
    split: str | None = None
    scene: str | None = None
    keep: dict[str, Any] = field(default_factory=dict)

    def keeps(self, values: dict[str, Any]) -> bool:
        """Whether a row has the values of `keep`: 1, 1.0, true and "True" are one value, as programs write it variously."""
        return all(plain_value(values.get(name)) == plain_value(wanted) for name, wanted in self.keep.items())


class Unusable(Exception):
    """A row, a caption or a picture that cannot be used; the text is the reason, a fixed phrase before any colon."""


def decodable(text: str) -> bool:
    """Whether a text is whole: bytes that are no UTF-8 come as surrogates, or have been replaced by a sign."""
    return _LOST.search(text) is None


def plain_value(value: Any) -> str:
    """A value as text that does not depend on the program that wrote it."""
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower()
    return {"true": "1", "1.0": "1", "false": "0", "0.0": "0"}.get(text, text)


def show(value: Any) -> str:
    """`value` as one line of at most SHOWN characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = " ".join(text[: 4 * SHOWN].split()).encode("utf-8", "replace").decode()
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def kind(value: Any) -> str:
    """What a value is, in a word or two."""
    kinds = {type(None): "null", dict: "a set of fields", list: "a list", str: "text", bool: "a truth value", bytes: "bytes"}
    return kinds.get(type(value), "a number")
