"""Stage 1: what `sources` names, or the embedded data set, as files under data/download/WORKLOAD/raw. All of it or nothing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from contracts.errors import SlipwayError
from contracts.files import remove, replace_when_complete, write_json
from contracts.progress import Progress
from contracts.settings import Settings, Source
from contracts.workload import Collects, Workload, load, settings_of
from tasks.downloading.addresses import shown
from tasks.downloading.archives import is_archive, unpack, unwanted
from tasks.downloading.earlier import Arrival, Earlier
from tasks.downloading.fetching import Fetched, digest, fetch, tree_digest
from tasks.stage import folder, stage_main

# Beside data/, because DVC deletes a stage's outputs before it runs the stage.
STORE = Path("runs") / "downloads"


def run(workload: str) -> None:
    """Write raw/ and download.json: for every source its address (no secrets), sha256, bytes, number of files and revision.

    Raises:
        SlipwayError: when a source cannot be had, is not what its sha256 or the settings say, or would write outside raw/.
    """
    settings = settings_of(workload)
    kind, output = load(workload), folder("download", workload)
    sources = list(kind.sources(settings))
    _check(sources, output)
    _sweep(output)
    ledger = STORE / f"{workload}.json"
    earlier = Earlier.read(ledger, output / "raw")
    with replace_when_complete(output) as temporary:
        raw = temporary / "raw"
        raw.mkdir(parents=True)
        arrivals = gather(sources, raw, earlier, STORE / workload)
        report: dict[str, Any] = {"sources": [one.told for one in arrivals]}
        if sources and isinstance(kind, Collects):
            kind.check(raw, settings)
        if not sources:
            make(kind, settings, raw, STORE / workload)
            report["embedded"] = settings.download.num_samples
        sizes = [path.stat().st_size for path in raw.rglob("*") if path.is_file()]
        if not sizes:
            raise SlipwayError(f"{workload}: the sources hold no files (hidden ones are left out)")
        write_json(temporary / "download.json", {**report, "files": len(sizes), "bytes": sum(sizes)})
    Earlier.write(ledger, arrivals)
    remove(STORE / workload)
    print(f"{workload}: {len(sizes):,} files, {sum(sizes) / 1e6:,.1f} MB in {output / 'raw'}")


def make(kind: Workload, settings: Settings, raw: Path, store: Path) -> None:
    """The data that a workload makes itself where no sources are named. What it keeps in `store` outlives an interruption."""
    if isinstance(kind, Collects):
        kind.collect(raw, settings, store)
    else:
        kind.sample(raw, settings.download.num_samples)


def gather(sources: Sequence[Source], raw: Path, earlier: Earlier, store: Path) -> list[Arrival]:
    """Fetch every source into `store`, then place them all below `raw`: one that fails leaves the others' transfers for the next
    run. What came before and is still the same is taken from where it lies."""
    kept = [earlier.still_good(source) for source in sources]
    fetched = [one or _checked(source, fetch(source, store)) for source, one in zip(sources, kept, strict=True)]
    arrivals = []
    for source, one in zip(sources, fetched, strict=True):
        staging = raw.with_name("staging")
        staging.mkdir()
        if isinstance(one, Arrival):
            arrival = _taken_over(one, earlier, staging)
        else:
            arrival = _unfolded(source, one[0], one[1], staging)
        _merge(staging, raw, arrival.address)
        _tell(arrival, earlier.of(source), taken_over=isinstance(one, Arrival))
        arrivals.append(arrival)
    return arrivals


def _taken_over(arrival: Arrival, earlier: Earlier, staging: Path) -> Arrival:
    for name in arrival.names:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        copy_file(earlier.raw / name, staging / name, ours=True)
    return arrival


def _checked(source: Source, fetched: Fetched) -> tuple[Fetched, str | None]:
    """The fetched thing and its sha256, compared with the one in params.yaml. A folder's is taken after it was copied."""
    if fetched.path.is_dir():
        return fetched, None
    sha256 = digest(fetched.path)[0]
    _compare(source, sha256, fetched)
    return fetched, sha256


def _compare(source: Source, sha256: str, fetched: Fetched) -> None:
    if source.sha256 in (None, sha256):
        return
    if fetched.owned:
        remove(fetched.path)
    raise SlipwayError(
        f"{shown(source.address)} has the sha256 {sha256}, and params.yaml says {source.sha256}: it was changed or damaged; "
        f"nothing was kept. If the new one is right, write its sha256 into params.yaml"
    )


def _unfolded(source: Source, fetched: Fetched, sha256: str | None, staging: Path) -> Arrival:
    """One fetched source as the files that it becomes, below `staging` as they will lie below raw/."""
    target, left_out = staging / source.into, 0
    if sha256 is None:
        left_out = copy_folder(fetched.path, target)
        sha256, size, _ = digest(target)
        _compare(source, sha256, fetched)
    else:
        size = fetched.path.stat().st_size
        target.mkdir(parents=True, exist_ok=True)
        if is_archive(fetched.name):
            left_out = unpack(fetched.path, target, name=fetched.name)
        else:
            copy_file(fetched.path, target / fetched.name, ours=fetched.owned)
    names = [path.relative_to(staging).as_posix() for path in sorted(staging.rglob("*")) if path.is_file()]
    tree = tree_digest(staging, names)[0] if fetched.owned else None
    told = shown(source.address), source.into, fetched.revision
    part = {"rows": source.rows, "columns": source.columns, "shards": fetched.shards}
    return Arrival(*told, sha256, size, len(names), left_out, names, tree, **part)


def _tell(arrival: Arrival, before: Arrival | None, *, taken_over: bool) -> None:
    """Say what a user should know of one source."""
    if taken_over:
        print(f"{arrival.address} is unchanged: not fetched again")
    elif before and before.sha256 != arrival.sha256:
        change = f"sha256 {before.sha256[:12]} -> {arrival.sha256[:12]}"
        print(f"note: {arrival.address} has changed since it was last downloaded ({change}); set sha256 to pin it")
    if arrival.left_out:
        print(f"note: {arrival.left_out:,} hidden files of {arrival.address} were left out")


def copy_folder(source: Path, target: Path) -> int:
    """Copy the files of a folder, those that links lead to included, and give the number of hidden ones left out.

    Raises:
        SlipwayError: for a link that leads nowhere or round in a circle, or something that is no file.
    """
    left_out = 0
    target.mkdir(parents=True, exist_ok=True)
    with Progress(f"copy {source}", 0, unit=" files") as progress:
        for place, folders, names in os.walk(source, followlinks=True, onerror=_unreadable):
            here = Path(place)
            if here.is_symlink() and here.resolve() in [parent.resolve() for parent in here.parents]:
                raise SlipwayError(f"{here} is a link to a folder that it lies in: there is no end to it")
            folders[:] = sorted(name for name in folders if not unwanted(name))
            for name in sorted(names):
                path = here / name
                if unwanted(name):
                    left_out += 1
                    continue
                if not path.is_file():
                    raise SlipwayError(
                        f"{path} is {'a link to nothing' if path.is_symlink() else 'no regular file'}: remove it"
                    )
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy_file(path, copy)
                progress.advance()
    return left_out


def copy_file(source: Path, target: Path, *, ours: bool = False) -> None:
    """A file with the same content and time. Blocks are shared where the file system can; a hard link is made of our own alone:

    DVC write-protects what it tracks, and a link to a user's file would write-protect theirs.
    """
    if ours:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    with source.open("rb") as old, target.open("xb") as new:
        if not _share_blocks(old.fileno(), new.fileno()):
            shutil.copyfileobj(old, new, 1 << 20)
    stamp = source.stat()
    os.utime(target, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def _share_blocks(old: int, new: int) -> bool:
    """Make `new` a copy-on-write twin of `old` (Btrfs, XFS, bcachefs on Linux)."""
    try:
        import fcntl

        fcntl.ioctl(new, 0x40049409, old)  # FICLONE
    except (ImportError, OSError):
        return False
    return True


def _merge(staging: Path, raw: Path, address: str) -> None:
    """Move the files of `staging` below `raw`, where other sources may have put theirs."""
    for path in sorted(staging.rglob("*")):
        if path.is_file():
            place = raw / path.relative_to(staging)
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():
                raise SlipwayError(f"{address}: another source put {path.relative_to(staging)} there before: set `into`")
            path.rename(place)
    remove(staging)


def _check(sources: Sequence[Source], output: Path) -> None:
    """Refuse what is wrong before anything is downloaded."""
    from tasks.downloading.addresses import local_path, scheme_of

    for source in sources:
        into = source.into.replace("\\", "/")
        if PurePosixPath(into).is_absolute() or re.match("[A-Za-z]:", into) or ".." in into.split("/"):
            raise SlipwayError(
                f"download.sources: into = {source.into!r} must stay inside the download: a relative path without .."
            )
        if scheme_of(source.address) == "file":
            path = local_path(source.address)
            if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
                raise SlipwayError(
                    f"download.sources: {source.address} holds the folder that it would be copied to, {output}: be more precise"
                )


def _sweep(output: Path) -> None:
    """Remove what a killed run of this stage left half done."""
    import psutil

    left = [path for kind in ("partial", "old") for path in output.parent.glob(f".{output.name}.*.{kind}")]
    for path in left:
        if not psutil.pid_exists(int(path.name.split(".")[-2])):
            remove(path)


def _unreadable(error: OSError) -> None:
    raise SlipwayError(f"{error.filename} cannot be read: {error.strerror}")


if __name__ == "__main__":
    stage_main(run)
