"""Learning histories as they are stored: a byte for each of place, action, reward and mark, memory-mapped, never in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from contracts.errors import SlipwayError
from contracts.files import read_json, replace_when_complete
from workloads.algorithm_distillation import original
from workloads.algorithm_distillation.moments import NUM_FIELDS

INDEX = "histories.json"


@dataclass(frozen=True)
class Row:
    """Where one history stands: a row of a part's array. `task` is its number among those of the index, `learner` its own among
    those of the task, in all parts."""

    part: str
    row: int
    task: int
    learner: int


@dataclass(frozen=True)
class Histories:
    """A folder of them, ours or the original's. histories.json says of what: `environment`, `source`, `episodes`, `noise`, `tasks`, `parts`.

    A part is `name`.npy, histories uint8 [rows, episodes, horizon + 1, 4], and `name`.rows.npy, int32 [rows, 2]: the number of
    the task, and of the learner.
    """

    folder: Path

    @property
    def unusable(self) -> Mapping[str, str]:
        """What was left out of the original's files, and why."""
        return self.index.get("unusable", {})

    @cached_property
    def index(self) -> dict[str, Any]:
        """What histories.json says.

        Raises:
            SlipwayError: when it is not there, or lacks something.
        """
        path = self.folder / INDEX
        if found := [] if path.is_file() else original.files(self.folder):
            return original.index_of(self.folder, found)
        if not path.is_file():
            raise SlipwayError(
                f"{path} is missing: the download holds no learning histories. Leave download.sources empty to have them "
                "collected, or name a folder that the download stage of this workload wrote (its raw/)"
            )
        index = read_json(path)
        if lacking := [
            name for name in ("environment", "source", "episodes", "noise", "tasks", "parts") if name not in index
        ]:
            raise SlipwayError(f"{path} lacks {', '.join(lacking)}: collect the histories again")
        return index

    def array(self, part: str) -> np.ndarray:
        """The histories of a part, memory-mapped; the original's are read and turned into ours.

        Raises:
            SlipwayError: when its file is missing or holds something else.
        """
        if ":" in part:
            return original.array_of(self.folder / part.partition(":")[0], part.partition(":")[2])
        path = self.folder / f"{part}.npy"
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise SlipwayError(f"{path} cannot be read ({error}): collect the histories again") from None
        if (
            found.dtype != np.uint8
            or found.ndim != 4
            or found.shape[1] != self.index["episodes"]
            or found.shape[3] != NUM_FIELDS
        ):
            raise SlipwayError(
                f"{path} holds {found.dtype} {list(found.shape)}, not uint8 [rows, {self.index['episodes']}, horizon + 1, 4]: "
                "collect the histories again"
            )
        return found

    def rows(self, part: str) -> Iterator[Row]:
        """The rows of a part, in order."""
        if ":" in part:
            task, first, num = self.index["spans"][part]
            yield from (Row(part, row, task, first + row) for row in range(num))
            return
        table = np.load(self.folder / f"{part}.rows.npy", allow_pickle=False)
        for row, (task, learner) in enumerate(table.tolist()):
            yield Row(part, row, task, learner)


def write_part(folder: Path, part: str, histories: np.ndarray, rows: np.ndarray) -> None:
    """Write a part, complete or not there; its rows last, so that a part with rows is whole."""
    for name, values in ((f"{part}.npy", histories), (f"{part}.rows.npy", rows.astype(np.int32))):
        with replace_when_complete(folder / name) as temporary, temporary.open("wb") as file:
            np.save(file, values, allow_pickle=False)


def is_whole(folder: Path, part: str) -> bool:
    """Whether a part was written to its end."""
    return (folder / f"{part}.rows.npy").is_file()


def gather(arrays: Sequence[np.ndarray], parts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Histories uint8 [n, episodes, horizon + 1, 4]: of each, the number of its array and its row there."""
    return np.stack([arrays[part][row] for part, row in zip(parts.tolist(), rows.tolist(), strict=True)])
