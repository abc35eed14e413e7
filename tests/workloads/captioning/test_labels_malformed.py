"""Label files as people really bring them: what is refused of each, where it says so, and what is kept."""

from __future__ import annotations

import csv
import json
import struct
import zlib
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from contracts.records import Record
from tasks.parse import Tally
from workloads.captioning.labels import parse
from workloads.captioning.settings import CaptioningParse

RAMP = np.add.outer(np.arange(60), np.arange(80)).astype(np.uint8)
LEFT_OUT = "picture left out: none of its captions is usable"
UNDECODABLE = "text cannot be decoded"
NOT_FOUND = "picture not found: no file of that name"
OUTSIDE = "path leads out of the download"
GOOD = {"a.png": ["a dog"]}


@dataclass(frozen=True)
class Case:
    """Files beside a.png, the rows expected in quarantine.csv (file, row, start of value, start of reason), the captions
    kept of each picture, and how many whole examples are lost."""

    name: str
    files: dict[str, bytes]
    refused: list[tuple[str, str, str, str]]
    kept: dict[str, list[str]] = field(default_factory=lambda: GOOD)
    lost: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


def encoded(kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(RAMP).save(buffer, kind, **options)
    return buffer.getvalue()


def caption(name: str, text: str, value: str, reason: str, **settings: Any) -> Case:
    """A caption, as JSON, that is refused beside a good one."""
    row = f'{{"file_name": "a.png", "text": ["a dog", {text}]}}\n'.encode("utf-8", "surrogateescape")
    return Case(f"caption: {name}", {"metadata.jsonl": row}, [("metadata.jsonl", "1", value, reason)], settings=settings)


def alone(name: str, text: str, value: str, reason: str) -> Case:
    """A picture's only captions, as JSON, that cannot be used: the picture is left out."""
    row = f'{{"file_name": "a.png", "text": {text}}}\n'.encode()
    refused = [("metadata.jsonl", "1", value, reason), ("metadata.jsonl", "1", "a.png", LEFT_OUT)]
    return Case(f"only caption: {name}", {"metadata.jsonl": row}, refused, {}, lost=1)


def line(name: str, text: bytes, value: str, reason: str, *, lost: int = 1) -> Case:
    """A line of metadata.jsonl that is refused after a good one."""
    content = b'{"file_name": "a.png", "text": "a dog"}\n' + text + b"\n"
    return Case(f"line: {name}", {"metadata.jsonl": content}, [("metadata.jsonl", "2", value, reason)], lost=lost)


def table(name: str, row: bytes, value: str, reason: str, *, lost: int = 0) -> Case:
    """A row of a CSV file that is refused after a good one."""
    files = {"mine.csv": b"image,caption\na.png,a dog\n" + row + b"\n"}
    return Case(f"table: {name}", files, [("mine.csv", "3", value, reason)], lost=lost)


def flickr(name: str, text: str, value: str, reason: str, *, lost: int = 0) -> Case:
    """A line of results.csv that is refused after a good one."""
    content = f"image_name| comment_number| comment\na.png| 0| a dog\n{text}\n".encode()
    return Case(f"flickr: {name}", {"results.csv": content}, [("results.csv", "3", value, reason)], lost=lost)


def coco(name: str, row: str, value: str, reason: str, *, lost: int = 0, images: Any = (), notes: Any = ()) -> Case:
    """Something refused in a COCO file beside a good image with a good annotation."""
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, *images],
        "annotations": [{"id": 1, "image_id": 1, "caption": "a dog"}, *notes],
    }
    return Case(f"coco: {name}", {"c.json": json.dumps(content).encode()}, [("c.json", row, value, reason)], lost=lost)


def karpathy(name: str, row: str, image: Any, value: str, reason: str, *, lost: int = 1) -> Case:
    """An image that is refused, or one of its sentences, in a file of Karpathy's after a good one."""
    good = {"imgid": 0, "filename": "a.png", "split": "train", "sentences": [{"raw": "a dog"}]}
    content = json.dumps({"images": [good, image], "dataset": "mine"}).encode()
    return Case(f"karpathy: {name}", {"d.json": content}, [("d.json", row, value, reason)], lost=lost)


def hub(name: str, cell: bytes | None, said: Any, value: str, reason: str, *, lost: int = 0, also: bool = False) -> Case:
    """A row of a shard that is refused after a good one; `also` where its picture goes with it."""
    image = pa.array([{"bytes": encoded("png"), "path": "a"}, {"bytes": cell, "path": "b.jpg"}])
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": image, "text": said}), buffer)
    refused = [("x.parquet", "1", value, reason)] + [("x.parquet", "1", "x.parquet#1", LEFT_OUT)] * also
    return Case(f"hub: {name}", {"x.parquet": buffer.getvalue().to_pybytes()}, refused, {"x.parquet#0": ["a dog"]}, lost)


def broken(name: str, content: bytes | None, reason: str) -> Case:
    """A picture that cannot be read, beside a good one. None is a picture that is not there."""
    rows = b"image,caption\nb.png,first\na.png,a dog\nb.png,second\n"
    files = {"mine.csv": rows} | ({} if content is None else {"b.png": content})
    refused = [("mine.csv", "2", "b.png", reason)]
    if content is None:
        refused.append(("mine.csv", "4", "b.png", reason))
    return Case(f"picture: {name}", files, refused, lost=1)


def bomb(width: int, height: int) -> bytes:
    """The head of a PNG that says it is so large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


INVALID = pa.StringArray.from_buffers(
    2, pa.py_buffer(np.array([0, 5, 8], np.int32).tobytes()), pa.py_buffer(b"a dog\xff\xfe\xfd")
)
OTHER = encoded("jpeg")

CASES = [
    caption("empty", '""', "", "empty caption"),
    caption("blank", '" \\t "', "", "empty caption"),
    caption("null", "null", "null", "no caption: null"),
    caption("NaN", "NaN", "NaN", "no caption: NaN"),
    caption("the word nan", '"NaN"', "NaN", "no caption: 'NaN' stands for nothing"),
    caption("a number", "7", "7", "caption is no text: it is a number"),
    caption("a truth value", "true", "true", "caption is no text: it is a truth value"),
    caption("a set of fields", '{"raw": "x"}', '{"raw": "x"}', "caption is no text: it is a set of fields"),
    caption("a list in a list", '["x"]', '["x"]', "caption is no text: it is a list"),
    caption("too short", '"cat"', "cat", "caption is too short: 3 characters, parse.shortest is 5", shortest=5),
    caption("too long", '"a very big cat"', "a very", "caption is too long: 14 characters, parse.longest is 9", longest=9),
    caption("the same twice", '" a  dog"', "a dog", "same caption twice: the picture has it from metadata.jsonl row 1"),
    caption("a lone surrogate", '"\\ud800"', "?", UNDECODABLE),
    caption("a sign of lost bytes", '"caf\ufffd"', "caf\ufffd", UNDECODABLE),
    caption("a control character", '"a\\u0000b"', "a\x00b", "caption holds a control character: '\\x00'"),
    alone("an empty list", "[]", "[]", "no caption: an empty list"),
    alone("empty", '""', "", "empty caption"),
    alone("null", "null", "null", "no caption: null"),
    line("not JSON", b'{"file_name": "a.png"', '{"file_name"', "not JSON"),
    line("JSON too deep", b"[" * 100_000, "[[[", "not JSON"),
    line("a list", b'["a.png", "x"]', '["a.png"', "row is not a set of fields: it is a list"),
    line("a text", b'"a.png"', '"a.png"', "row is not a set of fields: it is text"),
    line("not UTF-8", b'{"file_name": "a.png", "text": "caf\xe9"}', '{"file_name"', UNDECODABLE),
    line("no file name", b'{"text": "x"}', '{"text": "x"}', "no picture name"),
    line("file name is null", b'{"file_name": null, "text": "x"}', '{"file_name": null', "no picture name"),
    line("file name is a number", b'{"file_name": 7, "text": "x"}', "7", "picture name is no text: it is a number"),
    line("file name with a null byte", b'{"file_name": "a\\u0000.png", "text": "x"}', "a", UNDECODABLE),
    line("picture is missing", b'{"file_name": "gone.png", "text": "x"}', "gone.png", NOT_FOUND),
    line("path goes up", b'{"file_name": "../../etc/passwd", "text": "x"}', "../../etc/passwd", OUTSIDE),
    line("path is absolute", b'{"file_name": "/etc/passwd", "text": "x"}', "/etc/passwd", OUTSIDE),
    line("path of another system", b'{"file_name": "C:\\\\a.png", "text": "x"}', "C:\\a.png", OUTSIDE),
    line("an address", b'{"file_name": "https://x.org/a.png", "text": "x"}', "https://x.org", "picture is an address"),
    line("unknown split", b'{"file_name": "a.png", "text": "x", "split": "new"}', "a.png", "unknown split: 'new'"),
    line("no caption column", b'{"file_name": "a.png"}', "null", "no caption: null", lost=0),
    table("no caption", b"a.png", "null", "no caption: null"),
    table("empty caption", b"a.png,", "", "empty caption"),
    table("a comma that is not quoted", b"a.png,big, brown", "a.png,big, brown", "wrong number of fields: 3", lost=1),
    table("not UTF-8", b"a.png,caf\xe9", "caf?", UNDECODABLE),
    table("no picture", b",a cat", '{"image": ""', "no picture name", lost=1),
    table("the label file itself", b"mine.csv,a cat", "mine.csv", "picture cannot be read: not a picture", lost=1),
    Case(
        "table: a picture in two splits",
        {"mine.csv": b"image,caption,split\na.png,a dog,train\na.png,a cat,test\n"},
        [("mine.csv", "3", "a cat", "picture is in two splits: train before, here test")],
    ),
    flickr("two fields", "a.png| 4   A dog runs .", "a.png| 4", "wrong number of fields: 2 and not 3"),
    flickr("empty caption", "a.png| 4|", "", "empty caption"),
    flickr("picture is missing", "gone.png| 0| a cat", "gone.png", NOT_FOUND, lost=1),
    Case(
        "flickr: a line without a number",
        {"x.token.txt": b"a.png#0\ta dog\na.png\ta cat\n"},
        [("x.token.txt", "2", "a.png a cat", "line is not picture#number, a tab and a caption")],
    ),
    coco("unknown image", "annotation 7", '{"id": 7', "annotation of an unknown image", notes=[{"id": 7, "image_id": 9}]),
    coco("annotation is text", "annotation number 2", "x", "annotation is not a set of fields", notes=["x"]),
    coco("no caption", "annotation 7", "null", "no caption: null", notes=[{"id": 7, "image_id": 1}]),
    coco("a bare image", "image 2", "a.png", "no caption: no", lost=1, images=[{"id": 2, "file_name": "a.png"}]),
    coco("image without id", "image number 2", '{"file_name"', "image has no id", lost=1, images=[{"file_name": "b.png"}]),
    coco("image id twice", "image 1", '{"id": 1', "image id is there twice", images=[{"id": 1, "file_name": "a.png"}]),
    coco(
        "a missing picture with two captions",
        "image 2",
        "gone.png",
        NOT_FOUND,
        lost=1,
        images=[{"id": 2, "file_name": "gone.png"}],
        notes=[{"id": 2, "image_id": 2, "caption": "x"}, {"id": 3, "image_id": 2, "caption": "y"}],
    ),
    karpathy("image is text", "image number 2", "x", "x", "image is not a set of fields: it is text"),
    karpathy("no name", "image 7", {"imgid": 7, "sentences": [{"raw": "x"}]}, '{"imgid": 7', "no picture name"),
    karpathy("missing", "image number 2", {"filepath": "v", "filename": "b.png"}, "v/b.png", NOT_FOUND),
    karpathy("split", "image 7", {"imgid": 7, "filename": "a.png", "split": "new"}, "a.png", "unknown split: 'new'"),
    karpathy("bare", "image 7", {"imgid": 7, "filename": "a.png", "sentences": []}, "a.png", "no caption: the image has"),
    karpathy(
        "sentence is text",
        "image 7, sentence number 1",
        {"imgid": 7, "filename": "a.png", "split": "train", "sentences": ["x"]},
        "x",
        "sentence is not a set of fields: it is text",
        lost=0,
    ),
    karpathy(
        "no raw text",
        "image number 2, sentence 9",
        {"filename": "a.png", "split": "train", "sentences": [{"sentid": 9, "tokens": ["x"]}]},
        "null",
        "no caption: null",
        lost=0,
    ),
    karpathy(
        "two splits",
        "image 7, sentence 9",
        {"imgid": 7, "filename": "a.png", "split": "test", "sentences": [{"sentid": 9, "raw": "a cat"}]},
        "a cat",
        "picture is in two splits: train before, here test",
        lost=0,
    ),
    hub("no bytes", None, ["a dog", "a cat"], "b.jpg", "picture not found: the row holds no bytes of it", lost=1),
    hub("no picture", b"<html>", ["a dog", "a cat"], "b.jpg", "picture cannot be read: not a picture", lost=1),
    hub("cut off", OTHER[:-90], ["a dog", "a cat"], "b.jpg", "picture cannot be read: ", lost=1),
    hub("null", OTHER, ["a dog", None], "null", "no caption: null", lost=1, also=True),
    hub("not UTF-8", OTHER, INVALID, "\ufffd", UNDECODABLE, lost=1, also=True),
    hub("null in a list", OTHER, [["a dog"], [None]], "null", "no caption: null", lost=1, also=True),
    broken("missing", None, NOT_FOUND),
    broken("empty", b"", "picture cannot be read: an empty file"),
    broken("text", b"<html>404 not found</html>", "picture cannot be read: not a picture"),
    broken("cut off JPEG", encoded("jpeg")[:-200], "picture cannot be read: image file is truncated"),
    broken("cut off PNG", encoded("png")[:-80], "picture cannot be read: "),
    broken("header alone", encoded("jpeg")[:150], "picture cannot be read: "),
    broken("a bomb", bomb(100_000, 100_000), "picture is too large: more than"),
    broken("a small bomb", bomb(12_000, 12_000), "picture is too large: more than"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_cannot_be_used_is_quarantined_and_the_rest_kept(case: Case, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, content in {"a.png": encoded("png"), **case.files}.items():
        (raw / name).write_bytes(content)
    settings = CaptioningParse.model_validate(case.settings)

    with Tally(tmp_path / "quarantine.csv", settings.shares) as tally:
        kept = list(tally.accepted(parse(raw, settings, processes=1)))

    with (tmp_path / "quarantine.csv").open(newline="", encoding="utf-8") as file:
        rows = [tuple(row) for row in csv.reader(file)][1:]
    assert [row[:2] for row in rows] == [expected[:2] for expected in case.refused]
    for (_, _, value, reason), expected in zip(rows, case.refused, strict=True):
        assert value.startswith(expected[2]) if expected[2] else value == ""
        assert reason.startswith(expected[3])
    assert {record.key: record.targets["captions"] for record in kept} == case.kept
    assert tally.lost_examples == case.lost


def test_the_table_is_long_enough_and_names_each_case_once() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60


def test_a_png_with_a_very_long_text_is_a_picture_like_any_other(tmp_path: Path) -> None:
    note = PngInfo()
    note.add_text("Description", "x" * 5_000_000, zip=True)
    (tmp_path / "a.png").write_bytes(encoded("png", pnginfo=note))
    (tmp_path / "mine.csv").write_text("image,caption\na.png,a dog\n")
    assert [one.key for one in parse(tmp_path, CaptioningParse(), processes=1) if isinstance(one, Record)] == ["a.png"]


def test_a_picture_that_two_data_sets_name_has_the_captions_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "a.png").write_bytes(encoded("png"))
    (tmp_path / "mine.csv").write_text("image,caption\na.png,a dog\n")
    (tmp_path / "more" / "mine.csv").write_text("image,caption\n../a.png,a cat\n")
    record, refused = parse(tmp_path, CaptioningParse(), processes=1)
    assert isinstance(record, Record)
    assert record.targets["captions"] == ["a dog"]
    assert not isinstance(refused, Record)
    assert (refused.value, refused.reason.partition(":")[0]) == ("a cat", "picture has captions already")
