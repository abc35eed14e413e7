"""Single far files and what can be asked of them: read from any byte on, and named by their present state."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from contracts.errors import SlipwayError
from tasks.downloading.addresses import redacted
from tasks.downloading.retrying import BUSY

BLOCK = 1 << 20
CONNECT_SECONDS, SILENCE_SECONDS = 15, 60


class Refused(Exception):
    """The far end answered, and asking again will not help."""


class Broken(Exception):
    """The transfer failed in a way that may pass. `pause` is what the far end asked to wait, in seconds."""

    def __init__(self, why: str, *, pause: float | None = None) -> None:
        super().__init__(why)
        self.pause = pause


class Changed(Broken):
    """What lies here already is no beginning of what the far end has now."""


@dataclass(frozen=True)
class Stream:
    """Bytes of a file from `start` on. `identity` names the file's present state; None where the far end cannot tell."""

    start: int
    length: int | None
    identity: str | None
    chunks: Iterator[bytes]


class Remote(Protocol):
    """A single far file."""

    def stream(self, start: int, identity: str | None) -> Any:
        """A context manager giving a Stream that begins at `start` if the file is still `identity`, else at 0."""
        ...


class WebFile:
    """A file behind http or https, read with Range and If-Range so that one that changed meanwhile starts anew."""

    def __init__(self, address: str) -> None:
        self.address = address

    @contextmanager
    def stream(self, start: int, identity: str | None) -> Iterator[Stream]:
        import requests
        import urllib3

        headers = {"Accept-Encoding": "identity", "User-Agent": "slipway"}
        if start and identity:
            headers |= {"Range": f"bytes={start}-", "If-Range": identity}
        try:
            with requests.get(
                self.address, headers=headers, stream=True, timeout=(CONNECT_SECONDS, SILENCE_SECONDS)
            ) as response:
                yield self._answer(response, start, identity)
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.TooManyRedirects,
        ) as error:
            raise Refused(redacted(error)) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
            raise Broken(plain(error)) from None

    def _answer(self, response: Any, start: int, identity: str | None) -> Stream:
        status, headers = response.status_code, response.headers
        if status == 416:
            total = re.fullmatch(r"bytes \*/(\d+)", headers.get("Content-Range", ""))
            if total and int(total.group(1)) == start:
                return Stream(start, start, identity, iter(()))
            raise Changed("the file there is another than the one that was begun")
        if status in BUSY:
            asked = headers.get("Retry-After", "")
            raise Broken(f"the server answered {status} {response.reason}", pause=float(asked) if asked.isdigit() else None)
        if status not in (200, 206):
            raise Refused(f"the server answered {status} {response.reason}{REASONS.get(status, '')}")
        encoded = headers.get("Content-Encoding", "identity") not in ("", "identity")
        length = None if encoded or "Content-Length" not in headers else int(headers["Content-Length"])
        chunks = response.iter_content(BLOCK)
        if status == 200:
            return Stream(0, length, None if encoded else validator(headers), chunks)
        place = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", ""))
        if place is None or int(place.group(1)) != start:
            raise Changed("the server sent another part than the one asked for")
        if (validator(headers) or identity) != identity:
            raise Changed("the file there has changed since it was begun")
        return Stream(start, None if place.group(3) == "*" else int(place.group(3)), identity, chunks)


REASONS = {
    401: ": it wants credentials",
    403: ": no right to read it, or a signature that has expired",
    404: ": there is nothing at this address",
    410: ": it was removed",
}


class StoredFile:
    """A file in what fsspec opens: az, s3, gs, memory and the others."""

    def __init__(self, files: Any, path: str) -> None:
        self.files, self.path = files, path

    @contextmanager
    def stream(self, start: int, identity: str | None) -> Iterator[Stream]:
        try:
            info = self.files.info(self.path)
            present = identity_of(info)
            first = start if identity == present else 0
            with self.files.open(self.path, "rb", block_size=8 * BLOCK) as file:
                file.seek(first)
                yield Stream(first, info.get("size"), present, iter(lambda: file.read(8 * BLOCK), b""))
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise Refused(f"{type(error).__name__}: {redacted(error)}{anonymous(self.files)}") from None
        except (Refused, Broken, SlipwayError):
            raise
        except Exception as error:  # every cloud's library has its own kinds
            if "redential" in f"{type(error).__name__} {error}":
                raise Refused(f"{redacted(error)}{anonymous(self.files)}") from None
            self.files.invalidate_cache()
            raise Broken(plain(error)) from None


IDENTIFYING = (
    "size",
    "etag",
    "ETag",
    "md5",
    "generation",
    "version_id",
    "mtime",
    "last_modified",
    "LastModified",
    "created",
)


def identity_of(info: Mapping[str, Any]) -> str:
    """What tells one state of a stored file from another, as far as its store says."""
    return " ".join(f"{key}={info[key]}" for key in IDENTIFYING if info.get(key) is not None)


def anonymous(files: Any) -> str:
    """A hint for stores that ask for credentials even where the data is public."""
    protocol = files.protocol if isinstance(files.protocol, str) else files.protocol[0]
    return f" (public data: set FSSPEC_{protocol.upper()}_ANON=true)" if protocol in ("s3", "az", "abfs") else ""


def validator(headers: Any) -> str | None:
    """What If-Range may be asked with: a strong ETag, or else the time of the last change."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified")


def plain(error: BaseException) -> str:
    """The innermost words of an error that wraps others, without secrets."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    return redacted(f"{type(error).__name__}: {error}")[:300]


def state_of(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One name for the state of a stored folder."""
    lines = (f"{name} {identity_of(info)}\n" for name, info in sorted(found.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
