"""What `predict` is given: raw inputs with their names, lying in files or in memory."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import SlipwayError


@dataclass(frozen=True)
class RawInput:
    """One raw input: `name` is what its result is called, `content` what it holds, or the file that does."""

    name: str
    content: Path | bytes

    @property
    def place(self) -> str:
        """What errors call it: the file's path, or the name."""
        return str(self.content) if isinstance(self.content, Path) else self.name

    def read(self) -> bytes:
        """What it holds.

        Raises:
            SlipwayError: when its file cannot be read.
        """
        if isinstance(self.content, bytes):
            return self.content
        try:
            return self.content.read_bytes()
        except OSError as error:
            raise SlipwayError(f"{self.place} cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class RawKind:
    """What a workload predicts from: a word for it in the plural, and the endings of its files, in lower case with the dot."""

    name: str
    suffixes: Set[str]

    def listed(self, source: Path) -> list[RawInput]:
        """The inputs that `source` names, a file or a folder with its folders, sorted; hidden files are left out.

        Each is called by its path below the folder.

        Raises:
            SlipwayError: when it is missing or there are none.
        """
        if source.is_file():
            return [RawInput(source.name, source)]
        if not source.is_dir():
            raise SlipwayError(f"{source} does not exist: give a file or a folder of {self.name}")
        found = (path for path in source.rglob("*") if path.suffix.lower() in self.suffixes and path.is_file())
        files = sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(source).parts))
        if not files:
            raise SlipwayError(f"{source} holds no {self.name} ({', '.join(sorted(self.suffixes))})")
        return [RawInput(path.relative_to(source).as_posix(), path) for path in files]
