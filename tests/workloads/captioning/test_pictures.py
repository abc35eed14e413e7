"""Pictures arrive upright, in RGB and on white, from files and from the rows of shards alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from contracts.errors import SlipwayError
from contracts.records import Record
from contracts.workload import load
from workloads.captioning.labels import parse, shards
from workloads.captioning.labels.looking import look_at
from workloads.captioning.pictures import read
from workloads.captioning.settings import CaptioningParse

QUARTERS = np.kron(np.array([[0, 80, 160], [255, 200, 120]], np.uint8), np.ones((16, 16), np.uint8))
ORIENTATION = 0x0112


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def colour(number: int) -> Image.Image:
    return Image.new("RGB", (20 + number, 10), (number, 40, 250 - number))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
def test_a_turned_picture_is_read_upright_in_the_size_that_was_parsed(tmp_path: Path, kind: str, orientation: int) -> None:
    turned = {
        1: QUARTERS,
        2: QUARTERS[:, ::-1],
        3: QUARTERS[::-1, ::-1],
        4: QUARTERS[::-1],
        5: QUARTERS.T,
        6: np.rot90(QUARTERS, 1),
        7: QUARTERS[::-1, ::-1].T,
        8: np.rot90(QUARTERS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(Image.fromarray(np.ascontiguousarray(turned)), tmp_path / f"a.{kind}", exif=exif)
    picture = read(tmp_path, {"image": path.name})
    assert picture.shape == (32, 48, 3)
    assert np.abs(picture.astype(int) - QUARTERS[..., None]).max() <= (6 if kind == "jpg" else 0)
    seen = look_at(path)
    assert (seen.width, seen.height) == (48, 32)


def see_through(mode: str) -> Image.Image:
    """Left half red and solid, right half black and not there."""
    image = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 4, 4))
    return image.quantize() if mode == "P" else image


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "png"), ("P", "png"), ("RGBA", "webp"), ("RGBA", "gif")])
def test_what_is_see_through_is_white(tmp_path: Path, mode: str, kind: str) -> None:
    options = {"lossless": True} if kind == "webp" else {}
    saved(see_through(mode), tmp_path / f"a.{kind}", **options)
    picture = read(tmp_path, {"image": f"a.{kind}"})
    assert (picture[:, :4] == (255, 0, 0)).all()
    assert (picture[:, 4:] == 255).all()


def test_grey_of_16_bits_keeps_its_shades(tmp_path: Path) -> None:
    saved(Image.fromarray(QUARTERS.astype(np.uint16) * 257), tmp_path / "a.png")
    assert (read(tmp_path, {"image": "a.png"}) == QUARTERS[..., None]).all()


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_every_mode_comes_as_three_writable_channels_of_bytes(tmp_path: Path, mode: str) -> None:
    kind = "png" if mode in ("1", "L") else "jpg"
    saved(Image.fromarray(QUARTERS).convert("RGB").convert(mode), tmp_path / f"a.{kind}")
    picture = read(tmp_path, {"image": f"a.{kind}"})
    assert (picture.shape, picture.dtype, picture.flags.writeable) == ((32, 48, 3), np.uint8, True)


# Shards


def shard(folder: Path, *, kind: str = "parquet", num: int = 7, part: int = 3) -> Path:
    """`num` pictures of one colour, `part` rows a row group or batch."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = [saved(colour(number), folder / "one.png").read_bytes() for number in range(num)]
    (folder / "one.png").unlink()
    table = pa.table({"image": [{"bytes": cell, "path": None} for cell in cells], "caption": ["a colour"] * num})
    path = folder / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=part)
        return path
    create = pa.ipc.new_file if kind == "file.arrow" else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as sink, create(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=part)
    return path


@pytest.mark.parametrize("kind", ["parquet", "stream.arrow", "file.arrow"])
def test_the_row_of_a_record_gives_its_picture(tmp_path: Path, kind: str) -> None:
    shard(tmp_path, kind=kind)
    records = [one for one in parse(tmp_path, CaptioningParse(), processes=1) if isinstance(one, Record)]
    assert len(records) == 7
    for number in (6, 0, 3, 2, 5, 1, 4):
        inputs = records[number].inputs
        picture = read(tmp_path, inputs)
        assert picture.shape == (inputs["height"], inputs["width"], 3) == (10, 20 + number, 3)
        assert (picture == (number, 40, 250 - number)).all()


def test_reading_rows_in_order_decodes_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(tmp_path)
    parts: list[int] = []
    decode = shards.ParquetShard.part

    def counted(self: shards.ParquetShard, index: int, columns: Any) -> pa.Table:
        parts.append(index)
        return decode(self, index, columns)

    monkeypatch.setattr(shards.ParquetShard, "part", counted)
    for row in range(7):
        read(tmp_path, {"image": "x.parquet", "row": row})
    assert parts == [0, 1, 2]


def test_of_two_columns_of_pictures_the_one_that_was_parsed_is_read(tmp_path: Path) -> None:
    cells = [saved(colour(number), tmp_path / "cell" / "one.png").read_bytes() for number in range(2)]
    pq.write_table(pa.table({"image": cells[:1], "photo": cells[1:], "caption": ["x"]}), tmp_path / "x.parquet")
    (record,) = parse(tmp_path, CaptioningParse(image_column="photo"), processes=1)
    assert isinstance(record, Record)
    assert (read(tmp_path, record.inputs)[0, 0] == (1, 40, 249)).all()


def test_a_shard_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = shard(tmp_path)
    assert read(tmp_path, {"image": "x.parquet", "row": 6}).shape == (10, 26, 3)
    shard(tmp_path, num=2)
    os.utime(path, ns=(1, 1))
    with pytest.raises(SlipwayError, match="x.parquet has 2 rows, and no row 6"):
        read(tmp_path, {"image": "x.parquet", "row": 6})


# What cannot be read


def fails(root: Path, message: str, **inputs: Any) -> None:
    with pytest.raises(SlipwayError, match=message):
        read(root, inputs)


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    whole = saved(Image.fromarray(QUARTERS), tmp_path / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[:-100])
    (tmp_path / "text.jpg").write_text("<html>")
    shard(tmp_path)
    fails(tmp_path, "gone.jpg cannot be read: No such file", image="gone.jpg")
    fails(tmp_path, "cut.jpg cannot be decoded: .*[Tt]runcated", image="cut.jpg")
    fails(tmp_path, "text.jpg is not a picture that can be decoded", image="text.jpg", row=-1)
    fails(tmp_path, "gone.parquet is missing", image="gone.parquet", row=0)
    fails(tmp_path, "x.parquet has 7 rows, and no row 7", image="x.parquet", row=7)
    fails(tmp_path, "a.jpg does not hold the picture that was parsed", image="a.jpg", sha256="0" * 64)


def test_more_pixels_than_any_camera_takes_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workloads.captioning import pictures

    saved(Image.fromarray(QUARTERS), tmp_path / "a.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1000)
    fails(tmp_path, "a.png cannot be decoded: 48 x 32 are more than 1,000 pixels", image="a.png")


# Pictures of a folder


def test_the_file_that_a_record_s_picture_is_comes_from_folders_and_from_rows_of_shards(tmp_path: Path) -> None:
    path = saved(colour(3), tmp_path / "raw" / "a.png")
    record = Record("a", "", {"image": "a.png", "row": -1}, {})
    raw = load("captioning").raw_input(record, path.parent)
    assert (raw.name, raw.read()) == ("a", path.read_bytes())
    cells = [{"bytes": saved(colour(number), tmp_path / f"{number}.png").read_bytes()} for number in range(3)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "raw" / "some.parquet")
    raw = load("captioning").raw_input(Record("b", "", {"image": "some.parquet", "row": 2}, {}), path.parent)
    assert raw.read() == cells[2]["bytes"]
