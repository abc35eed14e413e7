"""`slipway quality`: a report beside the data, nothing else touched, and a clear word where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.quality import quality
from contracts.errors import SlipwayError
from contracts.files import read_json
from contracts.records import Record, write_records

REPORT = Path("data", "quality", "captioning")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder as `parse` leaves it: three pictures with captions."""
    image = {"row": -1, "width": 4, "height": 4}
    records = [
        Record(name, "", {"image": name, **image, "sha256": name}, {"captions": [text], "scene": ""}, "train")
        for name, text in (("a.png", "a dog"), ("b.png", "a dog"), ("c.png", "a man and an owl"))
    ]
    names = {"image": pa.string(), "row": pa.int32(), "width": pa.int32(), "height": pa.int32(), "sha256": pa.string()}
    targets = pa.struct([("captions", pa.list_(pa.string())), ("scene", pa.string())])
    folder = tmp_path / "data" / "parse" / "captioning"
    write_records(folder, records, inputs=pa.struct(list(names.items())), targets=targets, shares=(1, 0, 0))
    (folder / "facts.json").write_text(json.dumps({}))
    (tmp_path / "params.yaml").write_text("captioning: {}\nsegmentation: {}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_report_lies_beside_the_data_and_its_findings_are_printed(project: Path) -> None:
    result = CliRunner().invoke(app, ["quality", "captioning"])
    assert result.exit_code == 0, result.output
    assert "* 3 pictures, 3 captions" in result.output
    assert f"written: {REPORT / 'quality.md'}, {REPORT / 'quality.json'}" in result.output
    found = read_json(REPORT / "quality.json")
    assert found["duplicates"]["exact"]["captions"] == 2
    assert found["terms"]["gender"] == pytest.approx(1 / 3)
    assert {"quality.md", "weights.npy", "lengths.png"} < {path.name for path in REPORT.iterdir()}


def test_a_report_replaces_an_earlier_one_and_nothing_else(project: Path) -> None:
    quality("captioning", project / "mine")
    (project / "mine" / "words.png").unlink()
    quality("captioning", project / "mine")
    assert (project / "mine" / "words.png").is_file()
    (project / "kept").mkdir()
    (project / "kept" / "photo.png").write_bytes(b"dear to me")
    with pytest.raises(SlipwayError, match=r"kept holds other things, which would be lost: give a new folder"):
        quality("captioning", project / "kept")
    with pytest.raises(SlipwayError, match=r"params.yaml is a file: give a folder"):
        quality("captioning", project / "params.yaml")
    assert (project / "kept" / "photo.png").read_bytes() == b"dear to me"


def test_a_workload_without_a_report_is_told_which_have_one(project: Path) -> None:
    with pytest.raises(
        SlipwayError, match="'segmentation' has no data quality report; these have one: algorithm_distillation, captioning$"
    ):
        quality("segmentation")


def test_data_that_were_not_parsed_are_an_error_that_says_so(project: Path) -> None:
    (project / "data" / "parse" / "captioning" / "records.arrow").unlink()
    with pytest.raises(SlipwayError, match="records.arrow is missing: run the parse stage first"):
        quality("captioning")
    assert not REPORT.exists()
