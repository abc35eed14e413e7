"""Checkpoints: complete or absent, verified when read, written while training goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from contracts.errors import SlipwayError
from contracts.files import read_json, remove, replace_when_complete, write_json
from engine.beacon import WRITING, mark

# A manifest's hash of the rest of it: a damaged fingerprint would be taken for another run's.
OWN_HASH = "manifest_sha256"
GROWTH_SECONDS = 1.0


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk: a folder with state.pt and manifest.json."""

    folder: Path
    step: int


class Checkpoints:
    """The checkpoints of one run, in one folder; `keep` complete ones stay, and an old one goes only after a new one is there."""

    def __init__(self, folder: Path, *, fingerprint: str, keep: int = 2) -> None:
        self.folder, self.fingerprint, self.keep = folder, fingerprint, keep
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._copy: Any = None

    def found(self) -> list[Checkpoint]:
        """Those that are there, oldest first."""
        paths = sorted(self.folder.glob("step-*/manifest.json"))
        return [Checkpoint(path.parent, int(path.parent.name.removeprefix("step-"))) for path in paths]

    def save(self, step: int, state: dict[str, Any], *, first: Callable[[], object] = lambda: None) -> None:
        """Copy `state` now and write it in the background, where `first` is called before; waits for the one before.

        Raises:
            OSError: when the one before could not be written (a full disk, say).
        """
        self.wait()
        self._copy = copied(state, into=self._copy)
        self._writer = threading.Thread(target=self._write, args=(step, self._copy, first), name=f"checkpoint-{step}")
        self._writer.start()

    def wait(self) -> None:
        """Return when nothing is being written any more; raise what went wrong."""
        if self._writer is not None:
            self._watched(self._writer)
            self._writer = None
        if self._failure is not None:
            raise self._failure

    def _watched(self, writer: threading.Thread) -> None:
        """Wait for the writer; while what it writes grows, this process says that it goes on."""
        mark(WRITING)
        seen = 0
        while writer.is_alive():
            writer.join(GROWTH_SECONDS)
            if (now := self._num_written()) != seen:
                seen = now
                mark(WRITING)
        mark("saving")

    def _num_written(self) -> int:
        """The bytes on disk of what is not complete yet, the best weights beside the checkpoints among it."""
        size = 0
        with contextlib.suppress(FileNotFoundError):  # it has just been completed
            for path in (*self.folder.parent.glob(".*.partial"), *self.folder.glob(".*.partial/*")):
                size += path.stat().st_size
        return size

    def _write(self, step: int, state: dict[str, Any], first: Callable[[], object]) -> None:
        try:
            first()
            with replace_when_complete(self.folder / f"step-{step:09d}") as temporary:
                temporary.mkdir()
                torch.save(state, temporary / "state.pt")
                manifest = {"step": step, "fingerprint": self.fingerprint, "sha256": _sha256(temporary / "state.pt")}
                write_json(temporary / "manifest.json", {**manifest, OWN_HASH: _sha256_of(manifest)})
            for old in self.found()[: -self.keep]:
                remove(old.folder)
        except BaseException as error:
            self._failure = error

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """Step and state of the newest checkpoint that is whole; None where there is none.

        A damaged one is named and the one before it used.

        Raises:
            SlipwayError: when a checkpoint belongs to another run, with both fingerprints.
        """
        found = self.found()
        for checkpoint in reversed(found):
            try:
                manifest = _manifest(checkpoint.folder / "manifest.json")
                fingerprint, whole = manifest["fingerprint"], manifest["sha256"] == _sha256(checkpoint.folder / "state.pt")
            except (OSError, ValueError, KeyError) as error:
                print(f"{checkpoint.folder} is damaged ({error}); trying the one before", flush=True)
                continue
            if fingerprint != self.fingerprint:
                raise SlipwayError(
                    f"{checkpoint.folder} belongs to another run: its fingerprint is {fingerprint}, this run's is "
                    f"{self.fingerprint}. Settings, data or the workload's code differ; remove the folder, or restore what it was trained with"
                )
            if whole:
                return checkpoint.step, torch.load(checkpoint.folder / "state.pt", map_location="cpu", weights_only=True)
            print(
                f"{checkpoint.folder}/state.pt does not have the sha256 of its manifest; trying the one before", flush=True
            )
        if found:
            print(f"no checkpoint in {self.folder} is whole: training begins anew", flush=True)
        return None


def _manifest(path: Path) -> dict[str, Any]:
    """What a manifest says.

    Raises:
        ValueError: when it does not have the hash that it names; one written before manifests had any is believed.
    """
    manifest = read_json(path)
    if manifest.pop(OWN_HASH, None) not in (None, _sha256_of(manifest)):
        raise ValueError(f"{path.name} does not have the sha256 that it names")
    return manifest


def copied(value: Any, *, into: Any = None) -> Any:
    """The same nested state in memory of its own, on the CPU.

    Memory that an earlier copy took (`into`) is written anew where it fits: to get as much from the system takes longer than to copy.
    """
    if isinstance(value, torch.Tensor):
        if isinstance(into, torch.Tensor) and (into.shape, into.dtype) == (value.shape, value.dtype):
            return into.copy_(value.detach())
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        before = into if isinstance(into, dict) else {}
        return {key: copied(item, into=before.get(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        rows = into if isinstance(into, list | tuple) and len(into) == len(value) else [None] * len(value)
        return type(value)(copied(item, into=row) for item, row in zip(value, rows, strict=True))
    return value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
