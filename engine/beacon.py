"""What this process does now, where another process can read it even when this one is stuck; not a log.

`engine/hang/` is the reader. Before `start` every mark is a no-op: the same code runs where nobody watches. The marks
of a process come from one thread, the one that trains (or, in a loader worker, reads).
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import orjson

STARTING, WAITING_FOR_DATA, READING, IDLE, FINISHED = "starting", "waiting for data", "reading", "idle", "finished"
# What one call does for a whole split or a whole model, and so cannot say how it gets on.
SCORING, WRITING = "scoring", "writing the checkpoint"
SLOT = 32768  # bytes; more than MAX_KEYS keys and HISTORY collectives can take
HEADER = struct.Struct("<II")  # checksum and length of what follows
MAX_KEYS, KEY_LENGTH = 32, 100
HISTORY = 32


@dataclass(frozen=True)
class Mark:
    """What a process said last.

    `changes` counts what it said so far. `keys` are the first of its `num_keys` samples. `collective` is the one it is in,
    None outside of any; `entered` counts those it went into so far, `history` names the last of them, oldest first.
    """

    pid: int
    parent: int
    changes: int
    phase: str
    step: int | None
    keys: tuple[str, ...]
    num_keys: int
    collective: str | None
    entered: int
    history: tuple[str, ...]


class Beacon:
    """A memory-mapped file with two slots, written in turn: one is whole at any time, whenever the process is killed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with path.open("w+b") as file:
            # Zeros, not a hole: on a full disk a hole would kill the process at its first mark.
            file.write(bytes(2 * SLOT))
            file.flush()
            self._memory = mmap.mmap(file.fileno(), 2 * SLOT)
        self._history: list[str] = []
        self._now: dict[str, Any] = {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "changes": 0,
            "phase": STARTING,
            "step": None,
            "keys": (),
            "num_keys": 0,
            "collective": None,
            "entered": 0,
            "history": self._history,
        }
        self._write()

    def mark(self, phase: str, *, step: int | None = None, keys: Sequence[str] | None = None) -> None:
        """See the function `mark`."""
        now = self._now
        now["phase"] = phase
        if step is not None:
            now["step"] = step
        if keys is not None:
            now["keys"], now["num_keys"] = [key[-KEY_LENGTH:] for key in keys[:MAX_KEYS]], len(keys)
        self._write()

    @contextmanager
    def collective(self, name: str) -> Iterator[None]:
        """See the function `collective`."""
        now, before = self._now, self._now["collective"]
        now["collective"] = name
        now["entered"] += 1
        self._history.append(name)
        del self._history[:-HISTORY]
        self._write()
        try:
            yield
        finally:
            now["collective"] = before
            self._write()

    @contextmanager
    def reading(self, key: str) -> Iterator[None]:
        """See the function `reading`."""
        now = self._now
        phase, keys, num_keys = now["phase"], now["keys"], now["num_keys"]
        self.mark(READING, keys=(key,))
        try:
            yield
        finally:
            now["phase"], now["keys"], now["num_keys"] = phase, keys, num_keys
            self._write()

    def _write(self) -> None:
        now, memory = self._now, self._memory
        now["changes"] += 1
        text = orjson.dumps(now)
        at = now["changes"] % 2 * SLOT
        memory[at : at + HEADER.size + len(text)] = HEADER.pack(zlib.crc32(text), len(text)) + text


_beacon: Beacon | None = None


def start(folder: Path, rank: int, *, loader: int | None = None) -> None:
    """Be visible from now on, as a rank or as one of its loader workers, and answer when asked for the stacks.

    `folder` is on this machine's own disk. Call it first of all in the process, before the slow imports.
    """
    global _beacon
    place = place_of(folder, rank, loader)
    place.parent.mkdir(parents=True, exist_ok=True)
    _answer(place)
    _beacon = Beacon(place.with_suffix(".beacon"))


def start_worker(folder: Path, rank: int, worker: int) -> None:
    """`start` in a DataLoader's worker: `worker_init_fn=functools.partial(start_worker, folder, rank)`."""
    start(folder, rank, loader=worker)
    mark(IDLE)


def mark(phase: str, *, step: int | None = None, keys: Sequence[str] | None = None) -> None:
    """Say what this process does now ("forward"); saying the same again says that it goes on. About 3 microseconds.

    `step` and `keys`, the samples at work, stay what they were where they are not given.
    """
    if _beacon is not None:
        _beacon.mark(phase, step=step, keys=keys)


@contextmanager
def collective(name: str) -> Iterator[None]:
    """Inside, this rank may wait for the others, each of which must come to the same place ("all-reduce of losses").

    It may also compute: a backward that exchanges gradients as it goes is one collective. Where the device works on its
    own (CUDA), the wait is where its result is first read: that belongs inside. The phase stays what it is.
    """
    if _beacon is None:
        yield
    else:
        with _beacon.collective(name):
            yield


@contextmanager
def reading(key: str) -> Iterator[None]:
    """Inside, this rank or loader worker makes the sample `key`; afterwards it does what it did before."""
    if _beacon is None:
        yield
    else:
        with _beacon.reading(key):
            yield


def finish() -> None:
    """Say that this process will do no more, and come to no further collective."""
    mark(FINISHED)


def place_of(folder: Path, rank: int, loader: int | None = None) -> Path:
    """The files of a process, but for their suffix: .beacon, .stack and (without signals) .ask."""
    return folder / (f"rank-{rank}" if loader is None else f"rank-{rank}-loader-{loader}")


def read(path: Path) -> Mark | None:
    """What the process that owns the beacon said last; None where there is none yet."""
    try:
        memory = path.read_bytes()
    except (FileNotFoundError, PermissionError):  # Windows: a file that is just being replaced
        return None
    marks = [mark for at in (0, SLOT) if (mark := _parsed(memory[at : at + SLOT]))]
    return max(marks, key=lambda mark: mark.changes, default=None)


def _parsed(slot: bytes) -> Mark | None:
    if len(slot) < HEADER.size:
        return None
    checksum, length = HEADER.unpack_from(slot)
    text = slot[HEADER.size : HEADER.size + length]
    if not length or zlib.crc32(text) != checksum:
        return None
    values = orjson.loads(text)
    return Mark(**{**values, "keys": tuple(values["keys"]), "history": tuple(values["history"])})


def _answer(place: Path) -> None:
    """Write the stacks of all threads to the .stack file whenever asked."""
    file = place.with_suffix(".stack").open("w", encoding="utf-8")
    if hasattr(signal, "SIGUSR1"):
        # In the signal's C handler, so that it answers also while C code holds the interpreter's lock.
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
    else:
        threading.Thread(target=answer_requests, args=(place.with_suffix(".ask"), file), daemon=True, name="beacon").start()


def answer_requests(request: Path, file: TextIO) -> None:
    """Windows has no signal to ask with: a file does, seen within a quarter of a second unless C code holds the lock."""
    while True:
        if request.exists():
            faulthandler.dump_traceback(file=file, all_threads=True)
            request.unlink()
        time.sleep(0.25)
