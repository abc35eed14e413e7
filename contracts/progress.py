"""How long work tells where it is: a line in the terminal and, for a watcher, a line in the file that SLIPWAY_PROGRESS names."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

T = TypeVar("T")

TERMINAL_SECONDS, LOG_SECONDS, WATCHER_SECONDS = 0.2, 5.0, 1.0


class Progress:
    """Work of `total` units under way (0 where nobody knows); `quiet` work is counted and not shown. Use as a context manager and call `advance`."""

    def __init__(self, title: str, total: int, *, unit: str = "", quiet: bool = False) -> None:
        self.title, self.total, self.unit, self.quiet = title, total, unit, quiet
        self.done, self.note = 0, ""
        self._start = time.monotonic()
        self._shown = self._start if not sys.stderr.isatty() else 0.0
        self._told = 0.0
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._report(final=True)

    def advance(self, count: int = 1, *, note: str = "") -> None:
        """Count `count` more units as done; `note` is a few words shown behind them."""
        self.done += count
        self.note = note or self.note
        self._report()

    def _report(self, *, final: bool = False) -> None:
        if self.quiet:
            return
        now = time.monotonic()
        if final or now - self._told >= WATCHER_SECONDS:
            self._told = now
            self._tell()
        terminal = sys.stderr.isatty()
        if now - self._shown >= (TERMINAL_SECONDS if terminal else LOG_SECONDS) or (final and self._drawn):
            self._shown, self._drawn = now, True
            end = "\n" if final or not terminal else ""
            print(("\r\x1b[K" if terminal else "") + self.line(), end=end, file=sys.stderr, flush=True)

    def _tell(self) -> None:
        path = os.environ.get("SLIPWAY_PROGRESS")
        if path:
            with open(path, "a", encoding="utf-8") as file:
                file.write(
                    json.dumps({"title": self.title, "done": self.done, "total": self.total, "note": self.note}) + "\n"
                )

    def line(self) -> str:
        """Title, count, share, time left: `train  540/1200 (45%), 0:35 left, loss 1.93`."""
        seconds = time.monotonic() - self._start
        parts = [
            f"{self.title}  {self.done:,}"
            + (f"/{self.total:,} ({self.done / self.total:.0%})" if self.total else "")
            + self.unit
        ]
        if self.total and 0 < self.done < self.total:
            parts.append(f"{clock(seconds / self.done * (self.total - self.done))} left")
        elif self.done:
            parts.append(clock(seconds))
        return ", ".join([*parts, self.note] if self.note else parts)


def track(items: Iterable[T], title: str, *, total: int | None = None) -> Iterator[T]:
    """The same items, with progress shown while they are gone through."""
    size = total if total is not None else len(items) if hasattr(items, "__len__") else 0  # pyright: ignore[reportArgumentType]
    with Progress(title, size) as progress:
        for item in items:
            yield item
            progress.advance()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
