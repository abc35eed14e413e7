"""The six formats give the same records, side by side too, and what each of them may hold arrives as it was meant."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from contracts import ordered
from contracts.errors import SlipwayError
from contracts.records import Record, Records, Rejected, write_records
from contracts.splits import Division
from workloads.captioning.labels import facts, parse, schema
from workloads.captioning.labels.captions import unpacked
from workloads.captioning.labels.listing import Listing
from workloads.captioning.labels.looking import look_at
from workloads.captioning.labels.said import Unusable
from workloads.captioning.labels.splits import split_in_name, split_in_path
from workloads.captioning.phrases import understand
from workloads.captioning.scenes import write_scenes
from workloads.captioning.settings import CaptioningParse

SAID = {
    "a.png": ["A dog runs , fast .", 'Two "brown" dogs; one cat'],
    "b.jpg": ["Ein Hund läuft über die Straße"],
    "c.png": ["a red ball", "a ball | red", "one\u00a0ball"],
}
KEPT = {**SAID, "c.png": ["a red ball", "a ball | red", "one ball"]}


def picture(path: Path, *, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(path)
    return path


def rows() -> list[tuple[str, str]]:
    return [(name, caption) for name, captions in SAID.items() for caption in captions]


def lines(path: Path, *objects: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in objects), encoding="utf-8")


def metadata(raw: Path) -> None:
    lines(raw / "metadata.jsonl", *({"file_name": name, "text": captions} for name, captions in SAID.items()))


def comma_table(raw: Path) -> None:
    cells = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows()]
    (raw / "mine.csv").write_text("\r\n".join(["image,caption", *cells]), encoding="utf-8-sig", newline="")


def tab_table(raw: Path) -> None:
    cells = ["\t".join((f'"{name}"', '"' + caption.replace('"', '""') + '"')) for name, caption in rows()]
    (raw / "mine.tsv").write_text("\n".join(["Path\tDescription", *cells]), encoding="utf-16")


def json_table(raw: Path) -> None:
    lines(raw / "mine.jsonl", *({"image_path": name, "alt_text": caption} for name, caption in rows()))


def flickr_csv(raw: Path) -> None:
    body = [f"{name}| {number}| {caption}" for number, (name, caption) in enumerate(rows())]
    (raw / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *body]) + "\n", encoding="utf-8")


def flickr_token(raw: Path) -> None:
    body = [f"{name}#{number}\t{caption}" for number, (name, caption) in enumerate(rows())]
    (raw / "Flickr8k.token.txt").write_text("\n".join(body) + "\n", encoding="utf-8")
    (raw / "Flickr8k.lemma.token.txt").write_text("a.png#0\tdog run\n")


def coco(raw: Path) -> None:
    names = list(SAID)
    content = {
        "images": [{"id": index, "file_name": name} for index, name in enumerate(names)],
        "annotations": [
            {"id": index, "image_id": names.index(name), "caption": caption} for index, (name, caption) in enumerate(rows())
        ],
    }
    (raw / "captions.json").write_text(json.dumps(content))


def karpathy(raw: Path) -> None:
    images = [
        {"filename": name, "imgid": index, "split": split, "sentences": [{"raw": caption, "tokens": []} for caption in body]}
        for index, ((name, body), split) in enumerate(zip(SAID.items(), ("restval", "restval", "train"), strict=True))
    ]
    (raw / "dataset_mine.json").write_text(json.dumps({"images": images, "dataset": "mine"}))


WRITERS: dict[str, Callable[[Path], None]] = {
    "metadata": metadata,
    "table: csv": comma_table,
    "table: tsv": tab_table,
    "table: jsonl": json_table,
    "flickr: csv": flickr_csv,
    "flickr: token": flickr_token,
    "coco": coco,
    "karpathy": karpathy,
}


def table_of(names: list[str], folder: Path, **columns: Any) -> pa.Table:
    """Pictures as the Hub has them, and whatever else is in the rows."""
    cells = [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]
    return pa.table({"image": pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())])), **columns})


def stream(table: pa.Table, path: Path) -> None:
    """An Arrow file as `datasets` writes it, two rows a batch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def pictures(folder: Path) -> Path:
    for seed, name in enumerate(SAID):
        picture(folder / name, seed=seed)
    return folder


def read(raw: Path, *, processes: int = 1, **settings: Any) -> dict[str, Record]:
    """The records by key, where nothing is refused."""
    found = list(parse(raw, CaptioningParse.model_validate(settings), processes=processes))
    assert [one for one in found if isinstance(one, Rejected)] == []
    return {one.key: one for one in found if isinstance(one, Record)}


def captions(records: dict[str, Record]) -> dict[str, list[str]]:
    return {key: one.targets["captions"] for key, one in records.items()}


# The same captions in every format


def test_every_format_gives_identical_records(tmp_path: Path) -> None:
    found = {}
    for name, write in WRITERS.items():
        raw = pictures(tmp_path / name)
        write(raw)
        found[name] = list(read(raw).values())
    assert {one.key: one.targets["captions"] for one in found["metadata"]} == KEPT
    for name, records in found.items():
        assert records == found["metadata"], name


def test_shards_give_the_same_captions_sizes_and_hashes_as_files(tmp_path: Path) -> None:
    files = read(_written(tmp_path / "files", metadata))
    names, bodies = list(SAID), list(SAID.values())
    tables = {
        "list": table_of(names, tmp_path / "files", alt_text=bodies),
        "rows": table_of([name for name, _ in rows()], tmp_path / "files", caption=[text for _, text in rows()]),
        "bytes": pa.table({"jpg": [(tmp_path / "files" / name).read_bytes() for name in names], "text": bodies}),
    }
    for kind, table in tables.items():
        raw = tmp_path / kind
        raw.mkdir()
        pq.write_table(table, raw / "mine.parquet")
        stream(table, raw / "arrow" / "mine.arrow")
        found = read(raw)
        parquet = [one for one in found.values() if one.inputs["image"] == "mine.parquet"]
        assert [_but_place(one) for one in parquet] == [_but_place(one) for one in files.values()], kind
        arrow = [one for one in found.values() if one.inputs["image"] == "arrow/mine.arrow"]
        if kind != "rows":  # a picture is gathered within a part of a shard
            assert [_but_place(one) for one in arrow] == [_but_place(one) for one in files.values()], kind
            assert [one.key for one in parquet] == ["mine.parquet#0", "mine.parquet#1", "mine.parquet#2"]
            assert [one.inputs["row"] for one in arrow] == [0, 1, 2]


def _written(raw: Path, write: Callable[[Path], None]) -> Path:
    pictures(raw)
    write(raw)
    return raw


def _but_place(record: Record) -> tuple[Any, ...]:
    inputs = {name: value for name, value in record.inputs.items() if name not in ("image", "row")}
    return inputs, record.targets, record.split, record.likeness


def test_data_sets_side_by_side_are_all_read_each_in_its_own_format(tmp_path: Path) -> None:
    _written(tmp_path / "first", coco)
    _written(tmp_path / "second", flickr_csv)
    pictures(tmp_path / "third")
    (tmp_path / "third" / "data").mkdir()
    pq.write_table(table_of(["a.png"], tmp_path / "third", text=["a shard"]), tmp_path / "third" / "data" / "0.parquet")
    found = captions(read(tmp_path))
    first, second = ({f"{folder}/{name}": said for name, said in KEPT.items()} for folder in ("first", "second"))
    assert found == {**first, **second, "third/data/0.parquet#0": ["a shard"]}


def test_a_data_set_that_no_format_fits_stops_where_another_would_be_read_alone(tmp_path: Path) -> None:
    _written(tmp_path / "first", coco)
    pictures(tmp_path / "second")
    (tmp_path / "second" / "mine.csv").write_text("picture_id,what\n1,a dog\n")
    (tmp_path / "second" / "notes.txt").write_text("mine\n")
    message = r"no captions found in .*second, beside data sets .* Found 3 pictures and 2 possible label files \(.*mine.csv"
    missing(tmp_path, message + r".*\)\. .*mine.csv has the columns picture_id, what.*parse.labels to read one folder alone")
    assert captions(read(tmp_path, labels="first")).keys() == {f"first/{name}" for name in SAID}
    missing(tmp_path, "no captions found in .*second", format="coco")
    (tmp_path / "second" / "mine.csv").unlink()
    (tmp_path / "second" / "mine.json").write_text('{"pictures": []}')
    missing(tmp_path, r"Found 3 pictures and 2 possible label files \(second/mine.json, second/notes.txt\)")
    for file in ("a.png", "b.jpg", "c.png", "mine.json"):
        (tmp_path / "second" / file).unlink()
    pq.write_table(pa.table({"url": ["https://x.org/a.png"], "caption": ["a dog"]}), tmp_path / "second" / "0.parquet")
    missing(tmp_path, "no captions found in .*second")


def test_folders_without_captions_are_counted_where_they_can_be_no_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _written(tmp_path / "first", coco)
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "README.txt").write_text("Read me.\n")
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "README.md").write_text("It has moved.\n")
    picture(tmp_path / "second" / "x.png")
    (tmp_path / "second" / "LICENSE.txt").write_text("Free.\n")
    picture(tmp_path / "y.png")
    assert len(read(tmp_path, labels=None)) == 3
    said = capsys.readouterr().out
    assert "captions: none in papers/, which holds papers/README.txt" in said
    assert "captions: none in third/, which holds third/README.md" in said
    assert "2 pictures are named by no label and are left out, such as second/x.png (1 in second/, 1 in ./)" in said


@pytest.mark.parametrize("kind", ["table", "hub"])
def test_a_data_set_without_a_row_stops_and_is_named(tmp_path: Path, kind: str) -> None:
    _written(tmp_path / "first", coco)
    pictures(tmp_path / "second")
    if kind == "table":
        (tmp_path / "second" / "mine.csv").write_text("image,caption\n")
    else:
        table = table_of(["a.png"], tmp_path / "second", caption=["a dog"])
        pq.write_table(table.slice(0, 0), tmp_path / "second" / "mine.parquet")
    missing(tmp_path, rf"{kind} in second/ has no row \(second/mine\..*\)")


def test_captions_of_a_picture_are_gathered_from_rows_and_files_in_any_order(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "one.csv").write_text("image,caption\na.png,first\nb.jpg,other\na.png,second\n")
    (tmp_path / "two.csv").write_text("image,caption\nb.jpg,more\na.png,third\n")
    found = captions(read(tmp_path))
    assert list(found.items()) == [("a.png", ["first", "second", "third"]), ("b.jpg", ["other", "more"])]


def test_the_embedded_scenes_are_read_whole_with_their_splits_and_scenes(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    write_scenes(raw, 30)
    written = {row["file_name"]: row for row in map(json.loads, (raw / "metadata.jsonl").read_text().splitlines())}
    found = read(raw)
    assert found.keys() == written.keys()
    for key, record in found.items():
        assert record.targets == {"captions": written[key]["text"], "scene": written[key]["scene"]}
        assert record.split == written[key]["split"]
        assert (record.inputs["width"], record.inputs["height"], record.inputs["row"]) == (48, 48, -1)
        assert understand(record.targets["scene"])[0]
    known = _facts(raw, tmp_path / "parse", found, CaptioningParse())
    assert known["embedded"] is True
    assert (known["num_records"], known["formats"]) == (len(written), ["metadata"])
    assert known["counts"] == {"train": 24, "val": 2, "test": 4}


def _facts(raw: Path, folder: Path, found: dict[str, Record], settings: CaptioningParse) -> dict[str, Any]:
    inputs, targets = schema()
    write_records(folder, found.values(), inputs=inputs, targets=targets, shares=settings.shares)
    return facts(raw, Records.open(folder, root=raw), settings)


def test_facts_count_captions_and_their_words(tmp_path: Path) -> None:
    raw = _written(tmp_path / "raw", metadata)
    known = _facts(raw, tmp_path / "parse", read(raw), CaptioningParse())
    words = [len(caption.split()) for said in KEPT.values() for caption in said]
    assert known["num_captions"] == len(words) == 6
    assert known["mean_words"] == pytest.approx(sum(words) / 6)
    assert known["most_words"] == max(words)
    assert known["embedded"] is False


def test_a_column_of_scenes_that_are_not_the_embedded_ones_is_left_alone(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "a kitchen", "scene": "indoor"})
    assert read(tmp_path)["a.png"].targets["scene"] == ""


# Which picture is meant


def test_a_picture_is_found_from_the_label_file_from_the_top_and_by_the_end_of_its_path(tmp_path: Path) -> None:
    for name in ("set/images/A.JPG", "set/images/train/b.png", "other/b.png", "set/images/val2017/d.png", "set/e/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listing = Listing(tmp_path)
    means = {
        "../images/A.JPG": "set/images/A.JPG",
        "set/images/A.JPG": "set/images/A.JPG",
        "images\\a.jpg": "set/images/A.JPG",
        "a": "set/images/A.JPG",
        "b.png": "set/images/train/b.png",
        str(tmp_path / "other" / "b.png"): "other/b.png",
        "d.png": "set/images/val2017/d.png",
    }
    assert {name: listing.picture(name, "set/labels/x.csv", split="val") for name in means} == means
    assert listing.elsewhere.keys() == {means[name] for name in ("a", "b.png", "d.png")}
    with pytest.raises(Unusable, match="several pictures fit"):
        listing.picture("d.png", "set/labels/x.csv", split="test")
    with pytest.raises(Unusable, match="no file of that name in that folder; there is set/images/A.JPG"):
        listing.picture("somewhere/a.jpg", "set/labels/x.csv")


def test_the_caption_of_a_picture_that_is_missing_is_not_that_of_its_namesake_in_another_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("dogs/001.jpg", "dogs/002.jpg", "birds/003.jpg")):
        picture(tmp_path / name, seed=seed)
    rows = ["cats/001.jpg,a cat", "dogs/002.jpg,a dog", "003.jpg,a bird"]
    (tmp_path / "mine.csv").write_text("\n".join(["image,caption", *rows]))
    kept, refused = [], []
    for one in parse(tmp_path, CaptioningParse(), processes=1):
        (kept if isinstance(one, Record) else refused).append(one)
    assert {one.key: one.targets["captions"] for one in kept} == {"dogs/002.jpg": ["a dog"], "birds/003.jpg": ["a bird"]}
    [lost] = refused
    assert (lost.value, lost.whole) == ("cats/001.jpg", True)
    assert lost.reason == "picture not found: no file of that name in that folder; there is dogs/001.jpg"
    said = capsys.readouterr().out
    assert "1 pictures were found by their names alone, such as 003.jpg at birds/003.jpg" in said


def test_pictures_without_labels_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _written(tmp_path, metadata)
    picture(tmp_path / "z.png")
    assert "z.png" not in read(tmp_path)
    assert "1 pictures are named by no label and are left out, such as z.png" in capsys.readouterr().out


def test_a_copy_of_a_label_file_is_read_once(tmp_path: Path) -> None:
    _written(tmp_path, flickr_csv)
    (tmp_path / "copy.csv").write_bytes((tmp_path / "results.csv").read_bytes())
    assert captions(read(tmp_path)) == KEPT


# Columns, filters


def test_columns_are_called_what_the_settings_say(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "mine.csv").write_text("image,caption,Foto,Text_de\nx,bad,a.png,gut\n")
    assert captions(read(tmp_path, image_column="foto", caption_column="text_de")) == {"a.png": ["gut"]}


@pytest.mark.parametrize("kind", ["shards", "table", "two tables"])
def test_the_most_that_are_taken_are_spread_over_splits_shards_and_sets(tmp_path: Path, kind: str) -> None:
    """The files of test come first by name, and every tenth row of the table is for testing: equal steps would take no other."""
    names = [f"{number}.png" for number in range(300)]
    for number, name in enumerate(names):
        picture(tmp_path / "pictures" / name, seed=number, size=(8, 6))
    splits = ["test" if number % 10 == 9 else "train" for number in range(300)]
    raw = tmp_path / "raw"
    raw.mkdir()
    if kind == "shards":
        for split, some in (("test", names[9::10]), ("train", [name for name in names if not name.endswith("9.png")])):
            table = table_of(some, tmp_path / "pictures", caption=some)
            pq.write_table(table, raw / f"{split}-00000-of-00001.parquet", row_group_size=50)
    else:
        for folder, start, end in (("a", 0, 300),) if kind == "table" else (("a", 0, 150), ("b", 150, 300)):
            (raw / folder).mkdir()
            rows = [f"{name},{text},{split}" for name, split in zip(names, splits, strict=True) for text in ("one", "two")]
            (raw / folder / "t.csv").write_text("\n".join(["image,caption,split", *rows[2 * start : 2 * end]]))
            for name in names[start:end]:
                (raw / folder / name).write_bytes((tmp_path / "pictures" / name).read_bytes())
    found = read(raw, most=30)
    assert len(found) == 30
    assert {len(one.targets["captions"]) for one in found.values()} == ({1} if kind == "shards" else {2})
    official = Counter("test" if one.split == "test" else "train" for one in found.values())
    assert 1 <= official["test"] <= 6, "in about their proportion"
    if kind == "two tables":
        assert Counter(key[0] for key in found) == {"a": 15, "b": 15}
    assert read(raw, most=30) == found
    assert len(read(raw, most=1)) == 1
    assert read(raw, most=300) == read(raw, most=5000) == read(raw)


def test_a_picture_of_a_shard_that_is_taken_keeps_the_captions_of_all_its_rows(tmp_path: Path) -> None:
    pictures(tmp_path / "files")
    (tmp_path / "raw").mkdir()
    names = ["a.png"] * 2 + ["b.jpg"] * 2 + ["c.png"] * 2
    pq.write_table(table_of(names, tmp_path / "files", caption=list("uvwxyz")), tmp_path / "raw" / "0.parquet")
    found = captions(read(tmp_path / "raw", most=2))
    assert len(found) == 2 and all(said in (["u", "v"], ["w", "x"], ["y", "z"]) for said in found.values())


def test_rows_that_are_not_taken_are_not_counted_as_lost(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "mine.csv").write_text("image,caption\n" + "gone.png,x\n" * 99 + "a.png,a dog\n")
    refused = [one for one in parse(tmp_path, CaptioningParse(most=10), processes=1) if isinstance(one, Rejected)]
    assert len(refused) in (9, 10)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_rows_are_kept_by_value_and_may_share_one_caption(tmp_path: Path, suffix: str) -> None:
    pictures(tmp_path)
    if suffix == "parquet":
        table = table_of(list(SAID), tmp_path, is_document=pa.array([1, 0, 1], pa.int64()))
        pq.write_table(table, tmp_path / "docs.parquet")
    elif suffix == "jsonl":
        lines(tmp_path / "docs.jsonl", *({"image": name, "is_document": name != "b.jpg"} for name in SAID))
    else:
        (tmp_path / "docs.csv").write_text("image,is_document\na.png,1\nb.jpg,0\nc.png,1.0\n")
    found = read(tmp_path, keep={"is_document": 1}, caption="Text document.")
    assert [one.targets["captions"] for one in found.values()] == [["Text document."]] * 2
    kept = {look_at(tmp_path / name).sha256 for name in ("a.png", "c.png")}
    assert {one.inputs["sha256"] for one in found.values()} == kept


def test_a_list_in_a_cell_of_a_table_is_a_list_of_captions() -> None:
    assert unpacked('["one", "two"]') == ["one", "two"]
    assert unpacked("['one', 'it\\'s two']") == ["one", "it's two"]
    assert unpacked("[laughs] he said") == "[laughs] he said"
    assert unpacked("[__import__('os').getcwd()]") == "[__import__('os').getcwd()]"


def missing(raw: Path, message: str, **settings: Any) -> None:
    with pytest.raises(SlipwayError, match=message):
        list(parse(raw, CaptioningParse.model_validate(settings), processes=1))


def test_a_file_without_a_column_of_captions_stops_and_says_what_there_is(tmp_path: Path) -> None:
    pictures(tmp_path)
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "label": 3})
    missing(tmp_path, "metadata.jsonl has no column of captions .*; it has file_name, label. Set captioning")
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "mine.csv").write_text("image,label\na.png,3\n")
    missing(tmp_path, "no captions found .* mine.csv has the columns image, label")
    (tmp_path / "mine.csv").unlink()
    pq.write_table(table_of(["a.png"], tmp_path, label=[3]), tmp_path / "mine.parquet")
    missing(tmp_path, "mine.parquet has no column of captions .*; it has image, label")


def test_a_setting_that_fits_nothing_stops(tmp_path: Path) -> None:
    raw = _written(tmp_path, json_table)
    missing(raw, "parse.keep names the column 'document', which no file has", keep={"document": 1})
    missing(raw, "parse.caption_column = 'captoin': no file has that column", caption_column="captoin")
    missing(raw, "parse.labels = 'gone'", labels="gone")
    missing(raw, "no captions found", format="coco")
    missing(raw, "leaves no row", keep={"image_path": "none"})


def test_files_that_cannot_be_read_at_all_stop_and_are_named(tmp_path: Path) -> None:
    for name, content, message in (
        ("cut.json", b'{"images": [], "annotations": [{"caption": "a', "cut.json is not JSON"),
        ("lone.json", b'{"images": {}, "x": ["filename", "sentences", "raw"]}', "lone.json has no list 'images'"),
        ("cut.parquet", b"PAR1 and nothing more", "cut.parquet cannot be read"),
        ("cut.arrow", b"", "cut.arrow cannot be read"),
        ("open.csv", b'image,caption\na.png,"' + b"x" * (1 << 23), "open.csv: row 2 cannot be read .*quotation mark"),
        ("twice.csv", b"image,caption,caption\na.png,b,c\n", "twice.csv has two columns of one name"),
    ):
        raw = tmp_path / name.replace(".", "_")
        picture(raw / "a.png")
        (raw / name).write_bytes(content)
        missing(raw, message)


# Splits


def test_splits_are_found_in_columns_names_of_files_and_folders(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        picture(tmp_path / "folders" / split / "a.png", seed=len(split))
        lines(tmp_path / "folders" / split / "metadata.jsonl", {"file_name": "a.png", "text": f"a {split} picture"})
        table = table_of(["a.png"], tmp_path / "folders" / split, text=[f"a {split} picture"])
        (tmp_path / "shards").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "shards" / f"{split}-00000-of-00001.parquet")
    wanted = {"a train picture": "train", "a validation picture": "val", "a test picture": "test"}
    for folder in ("folders", "shards"):
        found = read(tmp_path / folder)
        assert {one.targets["captions"][0]: one.split for one in found.values()} == wanted


def test_a_column_of_splits_says_more_than_the_name_of_the_shard(tmp_path: Path) -> None:
    pictures(tmp_path)
    table = table_of(list(SAID), tmp_path, caption=["x", "y", "z"], split=["train", "val", "test"])
    pq.write_table(table, tmp_path / "TEST-00000-of-00009.parquet")
    assert [one.split for one in read(tmp_path).values()] == ["train", "val", "test"]


def test_the_lists_of_flickr8k_are_its_official_splits(tmp_path: Path) -> None:
    _written(tmp_path, flickr_token)
    for word, name in zip(("train", "dev", "test"), SAID, strict=True):
        (tmp_path / f"Flickr_8k.{word}Images.txt").write_text(name + "\n")
    assert {key: one.split for key, one in read(tmp_path).items()} == {"a.png": "train", "b.jpg": "val", "c.png": "test"}


def test_karpathys_file_divides_the_pictures_whatever_folders_they_lie_in(tmp_path: Path) -> None:
    """restval lies in val2014 and is trained on; the file is read and not the results.csv beside it, which has no splits."""
    splits, images = ("train", "restval", "val", "test"), []
    for number, split in enumerate(splits):
        folder = "train2014" if split == "train" else "val2014"
        picture(tmp_path / folder / f"{number}.png", seed=number)
        sentences = [{"raw": f"{split} says {word}", "sentid": number} for word in ("one", "two")]
        images.append(
            {"filepath": folder, "filename": f"{number}.png", "imgid": number, "split": split, "sentences": sentences}
        )
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    (tmp_path / "results.csv").write_text("image_name| comment_number| comment\n0.png| 0| other words\n")
    found = read(tmp_path)
    assert [one.split for one in found.values()] == ["train", "train", "val", "test"]
    assert captions(found)["val2014/1.png"] == ["restval says one", "restval says two"]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("annotations/captions_train2017.json", "train"),
        ("data/validation-00000-of-00002.parquet", "val"),
        ("alt-text-validation-train-00000.parquet", "train"),
        ("set/test/data-00000-of-00001.arrow", "test"),
        ("training.csv", "train"),
        ("trainers.csv", None),
        ("alt-text-validation/mine.csv", None),
    ],
)
def test_a_label_file_is_named_after_its_split(path: str, split: str | None) -> None:
    assert split_in_name(path) == split


def test_the_nearest_folder_names_a_pictures_split() -> None:
    assert split_in_path("train/images/val2017/a.jpg") == "val"
    assert split_in_path("contest/a.jpg") is None


def test_missing_splits_are_drawn_and_one_alone_is_none() -> None:
    shares = (0.8, 0.1, 0.1)
    assert Division.of(["train", None], shares).settle("train", "a") is None
    drawn = {Division.of(["train", "test"], shares).settle("train", str(number)) for number in range(100)}
    assert drawn == {"train", "val"}
    assert Division.of(["train", "test"], shares).settle("test", "a") == "test"
    assert Division.of(["train", "val", "test"], shares).settle("val", "a") == "val"


def test_a_picture_is_in_one_split_whatever_it_is_called_and_however_a_set_is_sharded(tmp_path: Path) -> None:
    """One set as files in two folders, as one shard and as four, some of it in train and test alone, so that val is drawn."""
    names = [f"{number}.png" for number in range(40)]
    for number, name in enumerate(names):
        picture(tmp_path / "files" / "one" / name, seed=number)
        (tmp_path / "files" / "two").mkdir(exist_ok=True)
        (tmp_path / "files" / "two" / f"copy of {name}").write_bytes((tmp_path / "files" / "one" / name).read_bytes())
    rows = [f"one/{name},a\ntwo/copy of {name},b\n" for name in names]
    (tmp_path / "files" / "mine.csv").write_text("image,caption\n" + "".join(rows))
    table = table_of(names, tmp_path / "files" / "one", caption=names)
    for shards, folder in ((1, "whole"), (4, "parts"), (1, "official/train"), (1, "official/test")):
        (tmp_path / folder).mkdir(parents=True)
        for shard in range(shards):
            pq.write_table(table.slice(shard * 40 // shards, 40 // shards), tmp_path / folder / f"{shard}.parquet")
    files, whole, parts, official = (
        _splits(tmp_path / folder, tmp_path / f"parsed {folder}") for folder in ("files", "whole", "parts", "official")
    )
    assert all(len(found) == 1 for found in files.values())
    assert {next(iter(found)) for found in files.values()} == {"train", "val", "test"}
    assert files == whole == parts
    assert {frozenset(found) for found in official.values()} == {frozenset({"train", "test"}), frozenset({"val", "test"})}


def _splits(raw: Path, folder: Path) -> dict[str, set[str]]:
    """The splits that each picture, by its content, is in."""
    found: dict[str, set[str]] = {}
    _facts(raw, folder, read(raw), CaptioningParse())
    for record in Records.open(folder, root=raw):
        found.setdefault(record.inputs["sha256"], set()).add(str(record.split))
    return found


# The machinery


def test_two_processes_give_the_records_of_one_in_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "files")
    body = []
    for index in range(150):
        name = list(SAID)[index % 3]
        (tmp_path / "files" / f"{index}{Path(name).suffix}").write_bytes((tmp_path / "files" / name).read_bytes())
        body.append({"file_name": f"{index}{Path(name).suffix}", "text": "" if index % 7 == 0 else f"number {index}"})
    lines(tmp_path / "files" / "metadata.jsonl", *body)
    (tmp_path / "shards").mkdir()
    table = table_of(list(SAID) * 50, tmp_path / "files", caption=[f"number {index}" for index in range(150)])
    pq.write_table(table, tmp_path / "shards" / "0.parquet", row_group_size=70)
    monkeypatch.setattr(ordered, "ALONE_SECONDS", 0)
    one, two = (list(parse(tmp_path, CaptioningParse(), processes=count)) for count in (1, 2))
    assert one == two
    assert sum(isinstance(result, Record) for result in one) == 128 + 9  # three pictures in each of three row groups
