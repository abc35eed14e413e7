"""Where models are published: versions of one name, and which of them is the latest. Local folders and what fsspec opens."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from contracts.errors import SlipwayError
from contracts.files import remove, write_json
from contracts.progress import track
from contracts.settings import PublishSettings
from contracts.workload import Metric
from tasks.downloading.addresses import filesystem, local_path, redacted, scheme_of, shown
from tasks.downloading.retrying import BUSY, retried
from tasks.publishing.release import Release

POINTER = "latest.json"
LOCK_SECONDS = 600


@dataclass(frozen=True)
class Version:
    """A published version: its name there, and what it was measured at. `model` is `Release.model`."""

    name: str
    model: str
    metric: str
    value: float


class Overtaken(Exception):
    """Somebody else published between our look at the latest version and our writing of the next."""


class Registry(Protocol):
    """A place that keeps versions of one model."""

    @property
    def name(self) -> str:
        """The model's name there."""
        ...

    def check(self) -> str:
        """Whether a version could be published now, writing nothing: words for the user, or a SlipwayError."""
        ...

    def latest(self) -> Version | None:
        """The version that users get, None before the first."""
        ...

    def locked(self) -> AbstractContextManager[object]:
        """Keeps other publishers out, where the place has locks."""
        ...

    def add(self, release: Release, latest: Version | None) -> tuple[str, str]:
        """Publish after `latest`: the new version's name and where it is. Complete, or the old one stays; Overtaken if it is not
        the latest any more."""
        ...


def open_registry(settings: PublishSettings, *, workload: str) -> Registry:
    """The registry that `publish.target` names.

    Raises:
        SlipwayError: when the address or the name cannot be used.
    """
    name, target = settings.name or workload, settings.target.rstrip("/")
    if not re.fullmatch(r"\w[\w.\-]*", name):
        raise SlipwayError(f"publish.name = {name!r}: letters, digits, . - and _ are possible")
    scheme = scheme_of(target)
    if scheme == "hf":
        from tasks.publishing.hub import HubRegistry

        return HubRegistry.at(target, name=name, private=settings.private)
    if scheme == "file":
        return LocalRegistry(local_path(target) / name)
    if scheme in ("http", "https"):
        raise SlipwayError(
            f"publish.target = {shown(target)}: a web address cannot be written to; use file://, hf://, s3://, gs:// or az://"
        )
    return StoreRegistry.at(target, name)


def decide(release: Release, latest: Version | None, metric: Metric) -> tuple[bool, str]:
    """Whether a release is to be published over the latest version, and why."""
    if latest is None:
        return True, "it is the first version there"
    if latest.model == release.model:
        return False, f"the same model is there already, as {latest.name}"
    if latest.metric != release.metric:
        reason = (
            f"{latest.name} there was measured by {latest.metric}, this one by {release.metric}: they cannot be compared"
        )
        return False, reason + "; set publish.name to publish it beside the other"
    better = metric.gain(release.value, latest.value) > 0
    relation = "beats" if better else "does not beat"
    return better, f"its {release.metric} {release.value:.4f} {relation} the {latest.value:.4f} of {latest.name}"


@dataclass(frozen=True)
class LocalRegistry:
    """A folder: v1/, v2/, ... and latest.json, which is written last and replaced atomically."""

    home: Path

    @property
    def name(self) -> str:
        return self.home.name

    def check(self) -> str:
        place = next(folder for folder in [self.home.absolute(), *self.home.absolute().parents] if folder.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise SlipwayError(f"publish.target: {place} is {'not writable' if place.is_dir() else 'no folder'}")
        return f"{self.home} can be written, {shutil.disk_usage(place).free / 1e9:,.1f} GB are free"

    def latest(self) -> Version | None:
        pointer = self.home / POINTER
        if not pointer.exists():
            return None
        version = read_pointer(pointer.read_bytes(), str(pointer))
        if not (self.home / version.name).is_dir():
            raise SlipwayError(f"{pointer} names {version.name}, which is not there: restore it, or delete {pointer}")
        return version

    @contextmanager
    def locked(self) -> Iterator[None]:
        import filelock

        self.home.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(self.home / ".lock", timeout=LOCK_SECONDS):
                yield
        except filelock.Timeout:
            raise SlipwayError(
                f"another process has been publishing to {self.home} for {LOCK_SECONDS} s: look for it, then try again"
            ) from None

    def add(self, release: Release, latest: Version | None) -> tuple[str, str]:
        for leftover in self.home.glob(".v*.partial"):
            remove(leftover)
        temporary = self.home / f".v.{os.getpid()}.partial"
        shutil.copytree(release.path, temporary)
        numbers = [int(path.name[1:]) for path in self.home.glob("v*") if path.name[1:].isdigit()]
        version = f"v{max(numbers, default=0) + 1}"
        temporary.rename(self.home / version)
        write_json(self.home / POINTER, {"version": version, **release.record})
        return version, str(self.home / version)


@dataclass(frozen=True)
class StoreRegistry:
    """A folder in what fsspec opens. Each version's folder is named by its content too, so that two publishers never mix; the
    pointer is written last, after one more look at it: such stores have no locks."""

    files: Any
    home: str
    address: str

    @property
    def name(self) -> str:
        return self.home.rsplit("/", 1)[-1]

    @classmethod
    def at(cls, target: str, name: str) -> StoreRegistry:
        files, path = filesystem(target)
        return cls(files, f"{path.rstrip('/')}/{name}", f"{shown(target)}/{name}")

    def check(self) -> str:
        self._try(lambda: self.files.exists(self.home))
        return f"{self.address} can be read; whether it can be written shows when it is"

    def latest(self) -> Version | None:
        pointer = f"{self.home}/{POINTER}"
        try:
            return read_pointer(self._try(lambda: self.files.cat_file(pointer)), f"{self.address}/{POINTER}")
        except FileNotFoundError:
            return None

    def locked(self) -> AbstractContextManager[object]:
        return nullcontext()

    def add(self, release: Release, latest: Version | None) -> tuple[str, str]:
        version = f"v{self._next()}-{release.model[:8]}"
        place, listed = f"{self.home}/{version}", release.files()
        for file in track(listed, f"upload {version}"):
            target = f"{place}/{file['path']}"
            self._try(lambda target=target, file=file: self._put(release.path / file["path"], target))
        self.files.invalidate_cache()
        found = {path: info["size"] for path, info in self._try(lambda: self.files.find(place, detail=True)).items()}
        sizes = {path.split(f"{version}/", 1)[-1]: size for path, size in found.items()}
        check_listing(listed, sizes, f"{self.address}/{version}")
        if self.latest() != latest:
            raise Overtaken
        content = json.dumps({"version": version, **release.record}, indent=2).encode()
        self._try(lambda: self.files.pipe_file(f"{self.home}/{POINTER}", content))
        return version, f"{self.address}/{version}"

    def _next(self) -> int:
        self.files.invalidate_cache()
        try:
            names = [
                path.rstrip("/").rsplit("/", 1)[-1] for path in self._try(lambda: self.files.ls(self.home, detail=False))
            ]
        except FileNotFoundError:
            return 1
        return 1 + max((int(found.group(1)) for name in names if (found := re.match(r"v(\d+)-", name))), default=0)

    def _put(self, source: Path, target: str) -> None:
        self.files.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        self.files.put_file(str(source), target)

    def _try(self, action: Any) -> Any:
        try:
            return retried(action, what=self.address, passing=store_trouble)
        except FileNotFoundError:
            raise
        except Exception as error:  # every cloud's library has its own kinds
            raise SlipwayError(f"publish.target: {self.address}: {type(error).__name__}: {redacted(error)}") from None


def read_pointer(content: bytes, where: str) -> Version:
    """The version that latest.json names."""
    try:
        value = json.loads(content)
        return Version(str(value["version"]), str(value["model"]), str(value["metric"]), float(value["value"]))
    except (ValueError, KeyError, TypeError) as error:
        raise SlipwayError(
            f"{where} is damaged ({type(error).__name__}: {error}): restore it, or delete it to begin anew"
        ) from None


def check_listing(files: list[dict[str, Any]], sizes: dict[str, int], where: str) -> None:
    """Compare what should lie at the target with what does.

    Raises:
        SlipwayError: naming the files that are missing or have another size.
    """
    wrong = [
        f"{one['path']} ({sizes.get(one['path'], 'missing')})" for one in files if sizes.get(one["path"]) != one["bytes"]
    ]
    if wrong:
        raise SlipwayError(
            f"{where} was uploaded but does not hold what was sent: {', '.join(wrong)}; the old version stays the latest"
        )


def store_trouble(error: Exception) -> str | None:
    """Why a store's error may pass. By name and number, for every cloud's library has its own kinds."""
    status = getattr(error, "status", None) or getattr(error, "status_code", None) or getattr(error, "code", None)
    kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
    if status in BUSY or re.search(
        "Timeout|ConnectionError|ServiceUnavailable|SlowDown|ServerDisconnected|EndpointConnection", kinds
    ):
        return f"{type(error).__name__}{f' {status}' if status else ''}"
    return None
