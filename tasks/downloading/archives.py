"""Zip and tar archives unpacked so that nothing can leave the folder, fill the disk or become a link or a device."""

from __future__ import annotations

import gzip
import lzma
import os
import posixpath
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from contracts.errors import SlipwayError
from contracts.progress import Progress

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
CHUNK = 1 << 20
# Deflate cannot exceed 1032; labels and masks stay far below 200. Small archives may unpack to a gigabyte all the same.
LARGEST_RATIO, ALWAYS_ALLOWED, MOST_MEMBERS = 200, 1 << 30, 20_000_000
RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$")
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError)
LONGEST_LINK, LONGEST_CHAIN = 4096, 40


@dataclass
class Limits:
    """How much an archive may unpack to, in bytes and members."""

    bytes: int
    members: int = MOST_MEMBERS
    written: int = field(default=0, init=False)
    seen: int = field(default=0, init=False)

    @classmethod
    def of(cls, archive: Path) -> Limits:
        return cls(max(ALWAYS_ALLOWED, LARGEST_RATIO * archive.stat().st_size))


def is_archive(name: str) -> bool:
    """Whether a file of this name is unpacked rather than kept."""
    return name.lower().endswith(SUFFIXES)


def unwanted(path: str) -> bool:
    """Whether any part of a relative path is hidden or is a system's bookkeeping (.git, .DS_Store, __MACOSX): left out everywhere."""
    return any(
        part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in PurePosixPath(path).parts
    )


def unpack(
    archive: Path, folder: Path, *, name: str = "", limits: Limits | None = None, windows: bool = os.name == "nt"
) -> int:
    """Unpack into `folder`, which may exist, and give the number of files that were left out for being hidden.

    `name` tells the kind where the file itself is called otherwise.
    Files and folders alone come out, with new permissions; a link inside the archive becomes a copy of what it points to.

    Raises:
        SlipwayError: for a member that would leave the folder, a device, a name this system cannot hold, a file that is
            already there, an archive that unpacks beyond `limits` or the disk, or a damaged one; names archive and member.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = name or archive.name
    unpacking = Unpacking(archive, name, folder, limits or Limits.of(archive), windows)
    try:
        with Progress(f"unpack {name}", 0, unit=" files") as progress:
            if name.lower().endswith(".zip"):
                unpacking.unzip(progress)
            else:
                unpacking.untar(progress)
    except DAMAGE as error:
        raise SlipwayError(f"{name} is damaged or is not what its name says ({error}): get it again") from None
    except (OSError, NotImplementedError) as error:
        raise SlipwayError(f"{name} could not be unpacked into {folder}: {error}") from None
    return unpacking.left_out


@dataclass
class Unpacking:
    """One archive on its way into a folder."""

    archive: Path
    name: str
    folder: Path
    limits: Limits
    windows: bool
    left_out: int = field(default=0, init=False)

    def unzip(self, progress: Progress) -> None:
        with zipfile.ZipFile(self.archive) as file:
            members = file.infolist()
            progress.total = len(members)
            self._announce(sum(member.file_size for member in members), len(members))
            links: dict[str, str] = {}
            for member in members:
                kind = stat.S_IFMT(member.external_attr >> 16)
                if member.flag_bits & 1:
                    raise self._refusal(member.filename, "is encrypted: unpack it yourself and give the folder")
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                    raise self._refusal(member.filename, "is a device or a pipe")
                path = self._place(member.filename)
                if path is None or member.is_dir():
                    continue
                if kind == stat.S_IFLNK:
                    if member.file_size > LONGEST_LINK:
                        raise self._refusal(member.filename, "is a link longer than any path")
                    links[path] = str(PurePosixPath(path).parent / file.read(member).decode(errors="replace"))
                    continue
                with file.open(member) as source:
                    self._write(path, source)
                progress.advance()
            self._copy_links(links)

    def untar(self, progress: Progress) -> None:
        with opened_tar(self.archive, self.name) as file:
            links: dict[str, str] = {}
            for member in file:
                self._announce(member.size if member.isreg() else 0, 1)
                if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
                    raise self._refusal(member.name, "is a device or a pipe")
                path = self._place(member.name) if member.name not in (".", "./") else None
                if path is None or member.isdir():
                    continue
                if member.issym() or member.islnk():
                    links[path] = str(PurePosixPath(path).parent / member.linkname) if member.issym() else member.linkname
                    continue
                source = file.extractfile(member)
                assert source is not None
                self._write(path, source)
                progress.advance()
            self._copy_links(links)

    def _announce(self, size: int, members: int) -> None:
        """Count what is about to come; refuse it before it is written."""
        self.limits.seen += members
        if self.limits.seen > self.limits.members:
            raise SlipwayError(
                f"{self.name} holds more than {self.limits.members:,} members, which no data set does: refused"
            )
        if self.limits.written + size > self.limits.bytes:
            raise SlipwayError(
                f"{self.name} ({self.archive.stat().st_size:,} bytes) would unpack to {self.limits.written + size:,} bytes or more, "
                f"beyond the limit of {self.limits.bytes:,}: it looks like a bomb; if it is not, unpack it yourself and give the folder"
            )
        free = shutil.disk_usage(self.folder).free if size > CHUNK else size
        if size > free:
            raise SlipwayError(
                f"{self.name} needs {size:,} bytes in {self.folder} and the disk has {free:,} left: make room"
            )

    def _place(self, name: str) -> str | None:
        """The member's relative path, or None for one that is left out. A backslash separates too: Windows would read it so."""
        path = name.replace("\\", "/")
        if path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in path.split("/"):
            raise self._refusal(name, "would be written outside the folder")
        if any(ord(character) < 32 or 0xD800 <= ord(character) <= 0xDFFF for character in path):
            raise self._refusal(name, "has control characters, or is not UTF-8, in its name")
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not parts:
            return None
        if self.windows and any(RESERVED.match(part) or part[-1] in ". " or set(part) & set('<>:"|?*') for part in parts):
            raise self._refusal(name, "has a name that Windows cannot hold: unpack it yourself under another name")
        path = "/".join(parts)
        if unwanted(path):
            self.left_out += 1
            return None
        return path

    def _write(self, path: str, source: IO[bytes]) -> None:
        target = self.folder / path
        self._make_room(target, path)
        with target.open("xb") as file:
            while chunk := source.read(CHUNK):
                self.limits.written += len(chunk)
                if self.limits.written > self.limits.bytes:
                    self._announce(0, 0)
                file.write(chunk)

    def _make_room(self, target: Path, name: str) -> None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise self._refusal(name, "needs a folder where another member or source put a file") from None
        if target.exists():
            raise self._refusal(name, f"is there already: another member or source wrote {target.name} into {target.parent}")

    def _copy_links(self, links: dict[str, str]) -> None:
        """Links become copies, after everything else: a link is never created, so nothing can be written through one."""
        for path, aim in links.items():
            target = posixpath.normpath(aim.replace("\\", "/"))
            for _ in range(LONGEST_CHAIN):
                target = posixpath.normpath(links.get(target, target))
            if target == ".." or target.startswith(("/", "../")) or re.match("[A-Za-z]:", target):
                raise self._refusal(path, f"is a link out of the folder, to {aim}")
            if not (self.folder / target).is_file():
                raise self._refusal(path, f"is a link to {target}, which is no file of the archive")
            with (self.folder / target).open("rb") as source:
                self._announce(os.fstat(source.fileno()).st_size, 0)
                self._write(path, source)

    def _refusal(self, name: str, why: str) -> SlipwayError:
        return SlipwayError(f"{self.name}: {name!r} {why}; nothing of it was kept")


@contextmanager
def opened_tar(archive: Path, name: str) -> Iterator[tarfile.TarFile]:
    """A tar file, whatever it is compressed with. Zstandard goes through Arrow: the standard library has it from 3.14 on only."""
    if name.lower().endswith("zst"):
        import pyarrow as pa

        try:
            with (
                pa.input_stream(str(archive), compression="zstd") as stream,
                tarfile.open(fileobj=stream, mode="r|") as file,
            ):
                yield file
        except OSError as error:
            if "zstd" not in str(error).lower():
                raise
            raise tarfile.ReadError(str(error)) from None
    else:
        with tarfile.open(archive) as file:
            yield file
