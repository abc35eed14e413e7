"""What a client sent as a raw input, or the status and the words with which it is refused; all of it stays in memory."""

from __future__ import annotations

import asyncio
import re
import warnings
from collections.abc import Set
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from io import BytesIO
from itertools import pairwise

from fastapi import HTTPException, Request
from PIL import Image, UnidentifiedImageError

from contracts.raw import RawInput

FORM, BARE = "multipart/form-data", ("application/octet-stream", "image/")
# A refused upload is read on so far, so that the client has sent it and hears why; who goes on after that is cut off.
READ_ON = 8
MOST_PARTS, MOST_HEAD, MOST_NAME = 16, 4096, 200


@dataclass(frozen=True)
class Limits:
    """The largest upload in bytes, the largest picture in pixels, whatever the bytes it is packed into, and the seconds that
    an upload may take: one that never ends would hold its place for ever."""

    bytes: int
    pixels: int
    seconds: float = 120


async def received(request: Request, limits: Limits, *, name: str) -> RawInput:
    """The picture in a request: its body, or the first file of its form. `name` is what a bare body is called.

    Raises:
        HTTPException: 408 when it does not come, 413 when it is too large, 415 when it is of another type, 422 when it is empty
            or no file is in its form.
    """
    header = request.headers.get("content-type", BARE[0])
    kind = header.partition(";")[0].strip().lower()
    if kind != FORM and not kind.startswith(BARE):
        raise HTTPException(
            415, f"{shown(kind)} is no picture: send one as it is (image/jpeg, {BARE[0]}) or as a file in a form ({FORM})"
        )
    try:
        async with asyncio.timeout(limits.seconds):
            body = await read_body(request, limits.bytes)
    except TimeoutError:
        raise HTTPException(408, f"the upload was not there after {limits.seconds:g} seconds: send it again") from None
    raw = first_file(body, header) if kind == FORM else RawInput(shown(name) or "picture", body)
    if not raw.read():
        raise HTTPException(422, f"{raw.name} is empty: send the bytes of a picture")
    return raw


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request, if it is not larger than `most` bytes."""
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= most:
            body += chunk
        elif size > READ_ON * most:
            break
    if size > most:
        raise HTTPException(
            413, f"the upload is larger than {most / 1e6:g} MB: send a smaller picture, or serve with --max-megabytes"
        )
    return bytes(body)


def first_file(form: bytes, content_type: str) -> RawInput:
    """The first file of a multipart form (RFC 7578), which must be among its first parts.

    Not Starlette's own parser: that one writes what is larger than a megabyte to disk.

    Raises:
        HTTPException: 422 when the form is broken or holds no file.
    """
    boundary = _header(f"content-type: {content_type}").get_boundary()
    if not boundary:
        raise HTTPException(422, f"the form's Content-Type names no boundary: {shown(content_type)}")
    parts = (b"\r\n" + form).split(b"\r\n--" + boundary.encode("latin-1", "replace"), MOST_PARTS)
    for part, following in pairwise(parts[1:]):
        head, gap, content = part.partition(b"\r\n\r\n")
        if not gap or len(head) > MOST_HEAD:
            raise HTTPException(422, "the form is broken: one of its parts has no end of its headers")
        name = _header(head.decode("utf-8", "replace").strip()).get_filename()
        if name is not None:
            return RawInput(shown(re.split(r"[\\/]", name)[-1]) or "picture", content)
        if following.startswith(b"--"):
            break
    raise HTTPException(
        422, f"the form holds no whole file among its first {MOST_PARTS - 1} parts: send one (curl -F picture=@a.jpg)"
    )


def _header(text: str) -> Message:
    return HeaderParser().parsestr(text)


def shown(name: str) -> str:
    """A client's words as they may stand in a message: what is printable, and not too long."""
    return "".join(letter for letter in name if letter.isprintable())[:MOST_NAME]


def check_picture(raw: RawInput, suffixes: Set[str], most: int) -> None:
    """Refuse what is no picture of these formats, and what would unpack to more than `most` pixels: the header tells.

    Raises:
        HTTPException: 413 for too many pixels, 422 for anything but a picture.
    """
    known = Image.registered_extensions()
    formats = sorted({known[suffix] for suffix in suffixes if suffix in known})
    data = raw.read()
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(BytesIO(data), formats=formats) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise HTTPException(
            422, f"{raw.name} ({len(data):,} bytes) is no picture that can be read; these can: {', '.join(formats)}"
        ) from None
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"{raw.name} is too large to be unpacked: {error}") from None
    except Exception as error:  # Pillow's readers raise anything at all on broken files
        raise HTTPException(422, f"{raw.name} cannot be read: {error or type(error).__name__}") from None
    if width * height > most:
        raise HTTPException(
            413,
            f"{raw.name} has {width} x {height} pixels, and at most {most / 1e6:g} million are unpacked: "
            "send a smaller picture, or serve with --max-megapixels",
        )
