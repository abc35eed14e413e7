"""One address brought to a local path: resumed where it broke off, complete or not at all. Unpacking is not done here."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from contracts.errors import SlipwayError
from contracts.files import read_json, remove, write_json
from contracts.progress import Progress, track
from contracts.settings import Source
from tasks.downloading.addresses import filesystem, local_path, scheme_of, shown
from tasks.downloading.remotes import (
    BLOCK,
    SILENCE_SECONDS,
    Broken,
    Changed,
    Refused,
    Remote,
    StoredFile,
    WebFile,
    anonymous,
    identity_of,
    plain,
    state_of,
)
from tasks.downloading.retrying import hub_trouble, retried, wait

ATTEMPTS, FIRST_PAUSE = 5, 1.0  # seconds
NUM_TRANSFERS = 8


@dataclass(frozen=True)
class Fetched:
    """Something that is now on this disk. `path` is a file or a folder; `owned` tells that it is ours to move or to delete.

    `revision` is what the far end calls this state of it: a commit, an ETag, or None. `shards` are the files of which some rows
    were taken, with their number.
    """

    path: Path
    name: str
    owned: bool
    revision: str | None = None
    shards: Mapping[str, int] | None = None


def fetch(source: Source, store: Path) -> Fetched:
    """Bring `source` to this disk. What is under way is kept below `store` and taken up by the next call.

    Local files are not copied: their own path comes back.

    Raises:
        SlipwayError: when it cannot be had, naming the address without secrets, or is not what its sha256 says.
    """
    scheme = scheme_of(source.address)
    if source.revision and scheme != "hf":
        raise SlipwayError(f"{shown(source.address)}: `revision` is for hf:// addresses; {scheme}:// has none: leave it out")
    if in_part(source) and scheme != "hf":
        raise SlipwayError(f"{shown(source.address)}: `rows` and `columns` are for hf:// data sets: leave them out")
    if scheme == "file":
        return _local(source)
    parts = f" {source.rows} {source.columns}" if in_part(source) else ""
    place = store / hashlib.sha256(f"{source.address}@{source.revision}{parts}".encode()).hexdigest()[:16]
    if scheme == "hf":
        return _from_hub(source, place)
    if scheme in ("http", "https"):
        name = unquote(urlsplit(source.address).path.rsplit("/", 1)[-1])
        return _single(source, WebFile(source.address), safe_name(name), place)
    files, path = filesystem(source.address)
    files.invalidate_cache()
    try:
        folder = files.isdir(path)
    except Exception as error:  # every cloud's library has its own kinds
        raise SlipwayError(f"{shown(source.address)} cannot be read: {plain(error)}{anonymous(files)}") from None
    if not folder:
        return _single(source, StoredFile(files, path), safe_name(path.rsplit("/", 1)[-1]), place)
    return _stored_folder(source, files, path, place)


def _local(source: Source) -> Fetched:
    path = local_path(source.address)
    if not path.exists():
        raise SlipwayError(f"download.sources: {source.address} does not exist (looked at {path.absolute()})")
    return Fetched(path, path.resolve().name, owned=False)


def _single(source: Source, remote: Remote, name: str, place: Path) -> Fetched:
    path, revision = complete(remote, place / f"{name}.partial", place / "note.json", where=shown(source.address))
    return Fetched(path, name, owned=True, revision=revision)


def _stored_folder(source: Source, files: Any, path: str, place: Path) -> Fetched:
    from tasks.downloading.archives import unwanted

    root = path.rstrip("/")
    found = {name.removeprefix(root).lstrip("/"): info for name, info in sorted(files.find(root, detail=True).items())}
    names = [name for name in found if not unwanted(name)]
    if not names:
        raise SlipwayError(f"{shown(source.address)} holds no files")
    for name in names:
        if ".." in name.replace("\\", "/").split("/"):
            raise SlipwayError(f"{shown(source.address)} holds {name!r}, which would be written outside the folder")

    def one(name: str) -> None:
        where = f"{shown(source.address)}/{name}"
        remote, partial, note = (
            StoredFile(files, f"{root}/{name}"),
            place / "partial" / name,
            place / "notes" / f"{name}.json",
        )
        complete(remote, partial, note, where=where, silent=True)

    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        try:
            for _ in track(pool.map(one, names), f"download {shown(source.address)}", total=len(names)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    revision = state_of(found)
    return Fetched(place / "partial", safe_name(root.rsplit("/", 1)[-1]), owned=True, revision=revision)


def present_revision(source: Source, revision: str, size: int) -> str | None:
    """What the far end calls the present state of a source, as `fetch` would give it; None where it does not say or answer.

    `revision` and `size` (bytes) are those of the state we have: the web is asked whether it is still that one.
    """
    scheme = scheme_of(source.address)
    try:
        if scheme == "hf":
            kind, name, wanted, _ = hub_address(source)
            if wanted == revision:  # a commit stays what it is, and is not asked for
                return revision
            return hub_client().repo_info(name, repo_type=kind, revision=wanted, timeout=SILENCE_SECONDS).sha
        if scheme in ("http", "https"):
            with WebFile(source.address).stream(size, revision) as stream:
                return stream.identity if stream.length == size else None
        files, path = filesystem(source.address)
        files.invalidate_cache()
        if not files.isdir(path):
            return identity_of(files.info(path))
        root = path.rstrip("/")
        return state_of({name.removeprefix(root).lstrip("/"): info for name, info in files.find(root, detail=True).items()})
    except Exception:  # whatever it is, fetching anew will meet it too and say so
        return None


def hub_client() -> Any:
    import huggingface_hub

    return huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def hub_address(source: Source) -> tuple[str, str, str | None, str]:
    """Kind of repository, its name, the revision wanted and the path in it, of hf://datasets/organisation/name[@revision][/path]."""
    found = re.fullmatch(r"hf://(?:(models|datasets|spaces)/)?([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+?))?/?", source.address)
    if found is None:
        raise SlipwayError(
            f"{shown(source.address)} is not hf://organisation/name or hf://datasets/organisation/name[/path]"
        )
    return (
        (found.group(1) or "models")[:-1],
        found.group(2),
        source.revision or found.group(3),
        unquote(found.group(4) or ""),
    )


def in_part(source: Source) -> bool:
    """Whether only some rows or columns of a source are wanted."""
    return source.rows is not None or source.columns is not None


def _from_hub(source: Source, place: Path) -> Fetched:
    """A repository of the Hugging Face Hub, or a part of it."""
    (kind, name, revision, _), hub = hub_address(source), hub_client()

    def download() -> Fetched:
        commit = str(hub.repo_info(name, repo_type=kind, revision=revision, timeout=SILENCE_SECONDS).sha)
        return (_some_rows if in_part(source) else _snapshot)(source, place / commit, commit, hub)

    try:
        return retried(download, what=shown(source.address), passing=hub_trouble, attempts=ATTEMPTS, pause=FIRST_PAUSE)
    except SlipwayError as error:
        raise SlipwayError(f"{shown(source.address)}: {error}") from None
    except Exception as error:  # the hub's client raises its own kinds, those of httpx and those of the system
        raise SlipwayError(
            f"{shown(source.address)} cannot be downloaded: {plain(error)} (a private one needs HF_TOKEN)"
        ) from None


def _snapshot(source: Source, place: Path, commit: str, hub: Any) -> Fetched:
    """Every file at a commit, below `place`."""
    kind, name, _, part = hub_address(source)
    patterns = [part, f"{part}/**"] if part else None
    root = hub.snapshot_download(name, repo_type=kind, revision=commit, local_dir=place, allow_patterns=patterns)
    path = Path(root) / part
    if not path.exists():
        raise SlipwayError(f"{name} at {commit} has no {part!r}")
    return Fetched(path, safe_name(path.name if part else name.split("/")[1]), owned=True, revision=commit)


def _some_rows(source: Source, place: Path, commit: str, hub: Any) -> Fetched:
    """Some rows and columns of the shards at a commit, below `place`."""
    from huggingface_hub import HfFileSystem

    from tasks.downloading.shards import shards_in, take

    kind, name, _, part = hub_address(source)
    names = shards_in(hub.list_repo_files(name, repo_type=kind, revision=commit), part)
    files = HfFileSystem(endpoint=hub.endpoint, skip_instance_cache=True)
    root = f"{kind}s/{name}@{commit}" if kind != "model" else f"{name}@{commit}"
    taken = take(files, root, names, place, rows=source.rows, columns=source.columns)
    return Fetched(place, safe_name(name.split("/")[1]), owned=True, revision=commit, shards=taken)


def complete(remote: Remote, partial: Path, note: Path, *, where: str, silent: bool = False) -> tuple[Path, str | None]:
    """Read a far file into `partial` until all of it is there, and give its place and its identity, which `note` keeps.

    `silent`: no progress of its own.

    However complete, it stays in the store as what it is, a transfer: each run asks the far end whether it is still the same.
    """
    partial.parent.mkdir(parents=True, exist_ok=True)
    failures, furthest = 0, 0
    while True:
        try:
            return partial, _advance(remote, partial, note, where, silent)
        except Refused as refusal:
            raise SlipwayError(f"{where} cannot be downloaded: {refusal}") from None
        except OSError as error:
            raise SlipwayError(f"{where} could not be written to {partial}: {error}") from None
        except Broken as broken:
            if isinstance(broken, Changed):
                remove(partial)
            size = partial.stat().st_size if partial.exists() else 0
            failures = 1 if size > furthest else failures + 1
            furthest = max(furthest, size)
            if failures == ATTEMPTS:
                kept = (
                    f"; the {size:,} bytes that came are kept in {partial.parent}, and the next run goes on from there"
                    if size
                    else ""
                )
                raise SlipwayError(
                    f"{where} could not be downloaded, {ATTEMPTS} attempts failed; the last: {broken}{kept}"
                ) from None
            wait(failures, FIRST_PAUSE, where, str(broken), attempts=ATTEMPTS, asked=broken.pause)


def _advance(remote: Remote, partial: Path, note: Path, where: str, silent: bool) -> str | None:
    """One attempt: append what is missing, or start anew, and check the length."""
    state = read_json(note) if note.exists() and partial.exists() else {}
    identity = state.get("identity")
    begun = partial.stat().st_size if identity else 0
    with remote.stream(begun, identity) as stream:
        if begun and stream.start == 0 and stream.identity == identity and stream.length == begun:
            return identity
        if stream.length is not None and stream.length - stream.start > (free := shutil.disk_usage(partial.parent).free):
            raise SlipwayError(
                f"{where} has {stream.length:,} bytes and the disk of {partial.parent} {free:,} left: make room"
            )
        if begun and stream.start and stream.length not in (None, state.get("length")):
            raise Changed(f"the file there has {stream.length:,} bytes now")
        if stream.start == 0:
            remove(partial)
            write_json(note, {"identity": stream.identity, "length": stream.length})
        title = f"download {partial.name.removesuffix('.partial')}"
        shown_as = nullcontext() if silent else Megabytes(title, stream.length or 0, done=stream.start)
        with partial.open("ab") as file, shown_as as progress:
            for chunk in stream.chunks:
                file.write(chunk)
                if progress:
                    progress.count(len(chunk))
        size = partial.stat().st_size
        if stream.length is not None and size != stream.length:
            raise (Changed if size > stream.length else Broken)(f"{size:,} of {stream.length:,} bytes came")
        return stream.identity


class Megabytes(Progress):
    """Progress over bytes, shown in megabytes."""

    def __init__(self, title: str, total: int, *, done: int = 0) -> None:
        super().__init__(title, total // 1_000_000, unit=" MB")
        self._bytes = done
        self.done = done // 1_000_000

    def count(self, size: int) -> None:
        self._bytes += size
        self.advance(self._bytes // 1_000_000 - self.done)


def digest(path: Path) -> tuple[str, int, int]:
    """sha256 (hex), number of bytes and number of files of a file or a folder.

    That of a folder is over the lines "sha256  relative/path" of its files, sorted: what `find . -type f | sort | xargs
    sha256sum | sha256sum` gives, but for the leading ./ of each path.
    """
    if path.is_file():
        with path.open("rb") as file, Megabytes(f"check {path.name}", path.stat().st_size) as progress:
            hashed = hashlib.sha256()
            while chunk := file.read(8 * BLOCK):
                hashed.update(chunk)
                progress.count(len(chunk))
        return hashed.hexdigest(), path.stat().st_size, 1
    return tree_digest(path, [item.relative_to(path).as_posix() for item in path.rglob("*") if item.is_file()])


def tree_digest(root: Path, names: Sequence[str]) -> tuple[str, int, int]:
    """The same of some files below `root`."""
    lines, size = hashlib.sha256(), 0
    with Progress(f"check {root.name}", len(names), unit=" files") as progress:
        for name in sorted(names):
            with (root / name).open("rb") as file:
                lines.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())
            size += (root / name).stat().st_size
            progress.advance()
    return lines.hexdigest(), size, len(names)


def safe_name(name: str) -> str:
    """A file name that every system holds, from the last part of an address."""
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", name).strip(". ") or "download"
