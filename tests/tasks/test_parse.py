"""The stage parse: what it writes, when it stops, and that nothing is lost when it does."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from contracts.errors import SlipwayError
from contracts.records import Record, Records, Rejected
from contracts.settings import ParseSettings, Settings
from tasks import parse as stage
from tasks.near_duplicates import Likenesses, nearest_alike


class Sayings:
    """A workload whose raw file has one example a line: `split word`, or a reason that begins with `!`."""

    Settings = Settings

    def schema(self) -> tuple[pa.DataType, pa.DataType]:
        return pa.struct([("text", pa.string())]), pa.struct([("words", pa.list_(pa.string()))])

    def parse(self, raw: Path, settings: Any, *, processes: int) -> Iterator[Record | Rejected]:
        for row, line in enumerate((raw / "sayings.txt").read_text().splitlines(), start=1):
            if line.startswith("!"):
                kind = {"whole": line.endswith("whole"), "absent": line.endswith("absent")}
                yield Rejected("sayings.txt", row, line * 100, f"{line[1:]}: because", **kind)
                continue
            split, _, text = line.partition(" ")
            likeness = text.encode().ljust(16)[:16]
            yield Record(f"{row}", "", {"text": text}, {"words": text.split()}, split or None, likeness)

    def facts(self, raw: Path, records: Records, settings: Any) -> dict[str, Any]:
        return {"classes": sorted({word for record in records for word in record.targets["words"]}), "objects": {}}


def run(folder: Path, *lines: str, **settings: Any) -> dict[str, Any]:
    (folder / "raw").mkdir(exist_ok=True)
    (folder / "raw" / "sayings.txt").write_text("\n".join(lines))
    chosen = Settings(parse=ParseSettings(**settings))
    return stage.parse(Sayings(), chosen, folder / "raw", folder / "parse" / "sayings", processes=1)  # pyright: ignore


def quarantine(folder: Path) -> list[list[str]]:
    with (folder / "quarantine.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


GOOD = ("train a b", "train c", "val d", "test e f g")


def test_everything_that_later_stages_read_is_written(tmp_path: Path) -> None:
    summary = run(tmp_path, *GOOD)
    output = tmp_path / "parse" / "sayings"
    assert sorted(path.name for path in output.iterdir()) == [
        "facts.json", "near_duplicates.csv", "quarantine.csv", "records.arrow", "summary.json",
    ]  # fmt: skip
    assert [record.key for record in Records.open(output, root=tmp_path / "raw").split("train")] == ["1", "2"]
    assert json.loads((output / "facts.json").read_text())["classes"] == list("abcdefg")
    assert json.loads((output / "summary.json").read_text()) == summary
    assert (summary["records"], summary["splits"], summary["labels"]) == (4, {"train": 2, "val": 1, "test": 1}, 7)
    assert quarantine(output) == [["file", "row", "value", "reason"]]


def test_refused_rows_are_counted_by_reason_and_shortened(tmp_path: Path) -> None:
    summary = run(tmp_path, *GOOD, "!torn", "!torn", "!blank whole", max_rejected=0.5)
    assert summary["rejected"]["reasons"] == {"torn": 2, "blank whole": 1}
    assert (summary["rejected"]["examples"], summary["rejected"]["labels"]) == (1, 2)
    rows = quarantine(tmp_path / "parse" / "sayings")
    assert [row[:2] for row in rows[1:]] == [["sayings.txt", "5"], ["sayings.txt", "6"], ["sayings.txt", "7"]]
    assert all(len(row[2]) == 200 and row[2].endswith("…") for row in rows[1:])
    assert rows[1][3] == "torn: because"


@pytest.mark.parametrize(
    ("bad", "limit", "message"),
    [
        (["!blank whole"], 0.19, r"1 examples \(20.0%\) cannot be used, more than parse.max_rejected = 0.19.*1 blank whole"),
        (["!torn"], 0.12, r"1 labels \(12.5%\) cannot be used, more than parse.max_rejected = 0.12.*1 torn"),
    ],
)
def test_more_than_the_set_share_stops_the_run_and_keeps_the_quarantine(
    tmp_path: Path, bad: list[str], limit: float, message: str
) -> None:
    run(tmp_path, *GOOD)
    before = (tmp_path / "parse/sayings/records.arrow").read_bytes()
    with pytest.raises(SlipwayError, match=message) as stopped:
        run(tmp_path, *GOOD, *bad, max_rejected=limit)
    assert f"{tmp_path / 'parse/sayings.refused/quarantine.csv'}" in str(stopped.value)
    assert len(quarantine(tmp_path / "parse" / "sayings.refused")) == 2
    assert json.loads((tmp_path / "parse/sayings.refused/summary.json").read_text())["rejected"]["reasons"]
    assert (tmp_path / "parse/sayings/records.arrow").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "parse").iterdir()) == ["sayings", "sayings.refused"]

    run(tmp_path, *GOOD)
    assert [path.name for path in (tmp_path / "parse").iterdir()] == ["sayings"]


def test_just_the_set_share_does_not_stop_the_run(tmp_path: Path) -> None:
    assert run(tmp_path, *GOOD, "!blank whole", max_rejected=0.2)["rejected"]["share_of_examples"] == 0.2


def test_labels_of_what_is_not_there_are_quarantined_and_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rejected = run(tmp_path, *GOOD, *["!far absent"] * 9, max_rejected=0.0)["rejected"]
    assert (rejected["absent"], rejected["examples"], rejected["labels"]) == (9, 0, 0)
    assert rejected["reasons"] == {"far absent": 9} and len(quarantine(tmp_path / "parse" / "sayings")) == 10
    assert "9 labels of images that are not there" in capsys.readouterr().out


def test_no_example_at_all_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(SlipwayError, match=r"no example in .*raw can be used: 2 torn.*quarantine.csv"):
        run(tmp_path, "!torn", "!torn", max_rejected=1)
    with pytest.raises(SlipwayError, match=r"no example in .*raw can be used: its label files are empty$"):
        run(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_training_needs_must_not_be_empty(tmp_path: Path, split: str) -> None:
    with pytest.raises(SlipwayError, match=rf"the split '{split}' is empty .*parse.shares = \[0.8, 0.1, 0.1\]"):
        run(tmp_path, *(line for line in GOOD if not line.startswith(split)))


def test_an_empty_test_split_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, *GOOD[:3])
    assert "warning: the split 'test' is empty" in capsys.readouterr().err


def test_near_duplicates_across_splits_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(tmp_path, "train the same words", "train other", "val the same words", "test the same wordr", "test new")
    assert summary["near_duplicates"]["compared"] == 5
    assert summary["near_duplicates"]["by_splits"] == {"val in train": 1, "test in train": 1, "test in val": 1}
    with (tmp_path / "parse/sayings/near_duplicates.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1:] == [["3", "val", "1", "train", "0"], ["4", "test", "1", "train", "1"], ["4", "test", "3", "val", "1"]]
    assert "3 near-duplicates across splits" in capsys.readouterr().err


def test_the_nearest_is_found_exactly_as_by_comparing_all() -> None:
    rng = np.random.default_rng(0)
    known = rng.integers(0, 256, (500, 16), dtype=np.uint8)
    wanted = known[rng.integers(0, 500, 200)].copy()
    for row in wanted:
        for bit in rng.integers(0, 128, rng.integers(0, 12)):
            row[bit // 8] ^= np.uint8(1 << (bit % 8))
    distances = np.bitwise_count(wanted[:, None] ^ known[None]).sum(-1).astype(int)
    expected = np.where(distances.min(1) <= 7, distances.argmin(1), -1)
    nearest, found = nearest_alike(wanted, known)
    assert nearest.tolist() == expected.tolist()
    assert found[nearest >= 0].tolist() == distances.min(1)[nearest >= 0].tolist()
    assert 0 < (expected < 0).sum() < 200


def test_examples_without_a_likeness_are_not_compared() -> None:
    likenesses = Likenesses()
    for key, split in (("a", "train"), ("b", "val")):
        likenesses.add(key, split, b"")
    assert len(likenesses) == 0
    assert likenesses.across_splits() == []


def test_the_embedded_scenes_parse_without_loss_or_false_alarm(
    scenes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("segmentation: {}\n")
    raw = Path("data/download/segmentation/raw")
    shutil.copytree(scenes.raw, raw)
    stage.run("segmentation")
    summary = json.loads(Path("data/parse/segmentation/summary.json").read_text())
    assert (summary["records"], summary["rejected"]["reasons"], summary["near_duplicates"]["found"]) == (48, {}, 0)
    assert sum(summary["objects"].values()) == summary["labels"]
    record = Records.open(Path("data/parse/segmentation"), root=raw)[0]
    assert (raw / record.inputs["image"]).is_file()
    assert (record.inputs["width"], record.inputs["height"]) == (128, 128)
    assert "48 records" in capsys.readouterr().out


def test_without_a_download_the_error_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SlipwayError, match=r"python -m tasks.download segmentation"):
        stage.run("segmentation")


def test_the_number_of_processes_may_be_set_and_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPWAY_PROCESSES", "3")
    assert stage.usable_processes() == 3
    monkeypatch.setenv("SLIPWAY_PROCESSES", "many")
    with pytest.raises(SlipwayError, match="SLIPWAY_PROCESSES is 'many'"):
        stage.usable_processes()
