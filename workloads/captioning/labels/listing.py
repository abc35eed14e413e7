"""The files of a download, and which picture a label file means when it names one."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from contracts.errors import SlipwayError
from contracts.pictures import PICTURES, walk
from workloads.captioning.labels.said import UNDECODABLE, Unusable, decodable, kind
from workloads.captioning.labels.splits import split_in_path

PICTURE_SUFFIXES = PICTURES.suffixes
LABEL_SUFFIXES = frozenset({".csv", ".tsv", ".txt", ".token", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow"})
_ADDRESS, _DRIVE = re.compile(r"[a-z][a-z0-9+]*://", re.IGNORECASE), re.compile(r"[a-z]:", re.IGNORECASE)
_ABOVE = re.compile(r"^(\.\./)+")
OUTSIDE = "path leads out of the download: write it from where the label file lies"


class Listing:
    """The pictures and possible label files below `root`, as sorted posix paths relative to it.

    `labels` is a part of it to look for label files in alone: a file or a folder. Memory: the names, nothing of what the
    files hold.
    """

    def __init__(self, root: Path, *, labels: str | None = None) -> None:
        self.root = root
        self.elsewhere: dict[str, str] = {}
        self._base = Path(os.path.abspath(root)).as_posix() + "/"
        if labels is not None and not (root / labels).exists():
            top = some(sorted(path.name for path in root.iterdir())) if root.is_dir() else "nothing"
            raise SlipwayError(f"parse.labels = {labels!r}: there is no {root / labels}; {root} holds {top}")
        self.names = frozenset(name for name in walk(root) if decodable(name))
        self.pictures = sorted(name for name in self.names if suffix(name) in PICTURE_SUFFIXES)
        self.labels = sorted(name for name in self.names if suffix(name) in LABEL_SUFFIXES and _below(name, labels))

    def picture(self, name: Any, file: str, *, split: str | None = None) -> str:
        """The picture that the label file `file` calls `name`, a path from where the file lies or from the top.

        Where nothing lies there, the one picture whose path ends so, whatever its letter case; of several the one in the label
        file's own top folder, else the one in a folder of its `split`. A folder that is named must be there: the 001.jpg of
        another one is another picture. Names without a folder that are found elsewhere are counted in `elsewhere`.

        Raises:
            Unusable: when `name` is no path inside the download, or no picture or several fit.
        """
        path = _path(name)
        beside = self._inside(posixpath.join(posixpath.dirname(file), path))
        wanted = _ABOVE.sub("", posixpath.normpath(path))
        for place in (beside, wanted):
            if place in self.names:
                return place
        alike = self._by_last.get(wanted.rsplit("/", 1)[-1].lower(), [])
        hits = [one for one in alike if _ends(one, wanted.lower())]
        hits = [one for one in hits if one.startswith(file.split("/")[0] + "/")] or hits
        hits = [one for one in hits if split_in_path(one) == split] or hits
        if len(hits) > 1:
            raise Unusable(f"several pictures fit: {', '.join(hits[:3])}")
        if hits:
            if "/" not in wanted:
                self.elsewhere[hits[0]] = path
            return hits[0]
        where = (
            f"no file of that name in that folder; there is {some(alike, 2)}"
            if alike
            else "no file of that name in the download"
        )
        raise Unusable(f"picture not found: {where}")

    def _inside(self, path: str) -> str:
        """A path as it is from the top of the download, whose own absolute path it may begin with."""
        inside = posixpath.normpath(path).removeprefix(self._base)
        if inside.startswith(("/", "../")) or inside == "..":
            raise Unusable(OUTSIDE)
        return inside

    @cached_property
    def _by_last(self) -> dict[str, list[str]]:
        """Pictures by file name in lower case, with and without its ending."""
        found: dict[str, list[str]] = {}
        for name in self.pictures:
            last = name.rsplit("/", 1)[-1].lower()
            for key in dict.fromkeys((last, _bare(last))):
                found.setdefault(key, []).append(name)
        return found


def _ends(picture: str, ending: str) -> bool:
    return any(f"/{one}".endswith(f"/{ending}") for one in (picture.lower(), _bare(picture)))


def _path(name: Any) -> str:
    if name is None or name != name or (isinstance(name, str) and not name.strip()):  # NaN is not itself
        raise Unusable("no picture name")
    if not isinstance(name, str):
        raise Unusable(f"picture name is no text: it is {kind(name)}")
    if not decodable(name) or "\0" in name:
        raise Unusable(UNDECODABLE)
    if _ADDRESS.match(name.strip()):
        raise Unusable("picture is an address: download it and name the file")
    if _DRIVE.match(name.strip()):
        raise Unusable(OUTSIDE)
    return name.strip().replace("\\", "/")


def _bare(name: str) -> str:
    """A path in lower case without the ending of a picture."""
    return name[: -len(suffix(name))].lower() if suffix(name) in PICTURE_SUFFIXES else name.lower()


def suffix(name: str) -> str:
    """The ending of a path in lower case, with the dot."""
    head, dot, ending = name.rsplit("/", 1)[-1].rpartition(".")
    return "." + ending.lower() if dot and head else ""


def _below(name: str, part: str | None) -> bool:
    wanted = PurePosixPath(part).as_posix() if part is not None else "."
    return wanted == "." or name == wanted or name.startswith(wanted + "/")


def some(names: Iterable[str], num: int = 6) -> str:
    """The first names, and how many more there are."""
    every = list(names)
    return (", ".join(every[:num]) or "nothing") + (f" and {len(every) - num:,} more" if len(every) > num else "")
