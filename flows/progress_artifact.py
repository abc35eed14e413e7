"""What a stage tells of its progress (contracts/progress.py), shown as a Prefect progress artifact that moves."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

UPDATE_SECONDS = 1.0


class ProgressArtifact:
    """Follows the file that a stage appends {"title", "done", "total", "note"} to. Call `update` as often as you like:
    it speaks to the server at most once a second, and not at all while nothing moves."""

    def __init__(self, path: Path, *, key: str) -> None:
        self.path, self.key = path, artifact_key("progress", key)
        self._position, self._rest = 0, b""
        self._last: tuple[float, str] | None = None
        self._artifact: UUID | None = None
        self._updated = float("-inf")

    def update(self) -> None:
        """Show the newest line, if a second has passed since the last one was shown."""
        if time.monotonic() - self._updated < UPDATE_SECONDS:
            return
        self._updated = time.monotonic()
        newest = self._newest()
        if newest is not None and newest != self._last:
            self._last = newest
            self._show(*newest)

    def finish(self) -> None:
        """Show where the stage got to in the end."""
        self._updated = float("-inf")
        self.update()

    def _newest(self) -> tuple[float, str] | None:
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        self._position += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        return _shown(json.loads(lines[-1])) if lines else None

    def _show(self, percent: float, text: str) -> None:
        if self._artifact is None:
            self._artifact = cast("UUID", create_progress_artifact(percent, key=self.key, description=text))
        else:
            update_progress_artifact(self._artifact, progress=percent, description=text)


def _shown(line: dict[str, object]) -> tuple[float, str]:
    done, total = float(str(line.get("done", 0))), float(str(line.get("total", 0)))
    percent = min(100.0, round(100 * done / total, 1)) if total else 0.0
    return percent, ", ".join(str(line[name]) for name in ("title", "note") if line.get(name))


def artifact_key(*parts: str) -> str:
    """A name that Prefect accepts for an artifact: lower-case letters, digits, dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
