"""The files of a download, and which image a label file means when it names one."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath

from contracts.errors import SlipwayError
from contracts.pictures import walk
from workloads.segmentation.labels.drawn import Unusable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
NOT_FOUND = "image not found"
LABEL_SUFFIXES = (".csv", ".json", ".txt", ".yaml", ".yml", ".xml", ".names")


class Listing:
    """The images and possible label files below `root`, as sorted posix paths relative to it.

    `labels` and `images` are parts of it to look in alone: a file or folder of label files, a folder of images.
    Memory: the names, nothing of what the files hold.
    """

    def __init__(self, root: Path, *, labels: str | None = None, images: str | None = None) -> None:
        self.root = root
        for setting, part in (("labels", labels), ("images", images)):
            if part is not None and not (root / part).exists():
                raise SlipwayError(f"parse.{setting} = {part!r}: there is no {root / part}; it holds {_top(root)}")
        names = list(walk(root))
        self.images = [name for name in names if _suffix(name) in IMAGE_SUFFIXES and _below(name, images)]
        self.labels = [name for name in names if _suffix(name) in LABEL_SUFFIXES and _below(name, labels)]

    def with_suffix(self, *suffixes: str) -> list[str]:
        """The possible label files that end so (lower case, with the dot)."""
        return [name for name in self.labels if _suffix(name) in suffixes]

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """Images by file name, in lower case and without its ending."""
        found: dict[str, list[str]] = {}
        for name in self.images:
            found.setdefault(stem(name), []).append(name)
        return found

    def image(self, name: str) -> str:
        """The image that `name` means: a file name or path whose letter case or ending may differ from the disk's.

        The best kind of agreement wins: whole path, path but for case, path but for case and ending, then the same three
        for the file name alone. Folders above the download are ignored, so nothing outside it is ever found.

        Raises:
            Unusable: when no image fits, or several fit equally well.
        """
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        candidates = self.by_stem.get(stem(parts[-1]), []) if parts else []
        for wanted in dict.fromkeys([tuple(parts), tuple(parts[-1:])]):
            for alike in (_exactly, _but_for_case, _but_for_ending):
                hits = [one for one in candidates if alike(one.split("/")[-len(wanted) :]) == alike(list(wanted))]
                if len(hits) > 1 and name in hits:
                    return name
                if len(hits) > 1:
                    raise Unusable(f"several images fit: {', '.join(hits[:3])}")
                if hits:
                    return hits[0]
        raise Unusable(f"{NOT_FOUND}: no file of that name in the download")


def stem(name: str) -> str:
    """The file name of a path in lower case, without an ending that is one of an image or a label file."""
    last = name.rsplit("/", 1)[-1].lower()
    head, dot, _ = last.rpartition(".")
    return head if dot and _suffix(last) in IMAGE_SUFFIXES + LABEL_SUFFIXES else last


def _suffix(name: str) -> str:
    head, dot, ending = name.rpartition(".")
    return "." + ending.lower() if dot and head else ""


def _below(name: str, part: str | None) -> bool:
    wanted = PurePosixPath(part).as_posix() if part is not None else "."
    return wanted == "." or name == wanted or name.startswith(wanted + "/")


def _exactly(parts: list[str]) -> list[str]:
    return parts


def _but_for_case(parts: list[str]) -> list[str]:
    return [part.lower() for part in parts]


def _but_for_ending(parts: list[str]) -> list[str]:
    return [*(part.lower() for part in parts[:-1]), stem(parts[-1])]


def _top(root: Path) -> str:
    return some(sorted(path.name for path in root.iterdir())) if root.is_dir() else "nothing"


def some(names: Iterable[str], num: int = 6) -> str:
    """The first names, and how many more there are."""
    every = list(names)
    return (", ".join(every[:num]) or "nothing") + (f" and {len(every) - num:,} more" if len(every) > num else "")
