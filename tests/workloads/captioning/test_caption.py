"""`slipway caption`: a line for each picture, what cannot be read is named, and neither torch nor transformers is needed."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.caption import caption
from contracts.errors import SlipwayError
from contracts.raw import RawInput
from contracts.workload import load
from serving.runtime import open_run
from tests.loading import loaded
from tests.workloads.captioning.conftest import Tiny

pytestmark = pytest.mark.slow  # the graphs are exported first
app = typer.Typer()
app.command()(caption)


@pytest.fixture
def photos(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pictures, some in a folder below, in a folder that is the current one's."""
    for number, record in enumerate(tiny.records.take(range(6))):
        place = tmp_path / "photos" / ("more" if number % 2 else ".") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny.records.root / record.inputs["image"], place)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def call(model: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and output."""
    result = CliRunner().invoke(app, ["photos", "--model", str(model), "--threads", "1", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def said(tiny: Tiny, model: Path, photos: Path, *, beams: int = 1) -> list[dict[str, str]]:
    """What the workload itself says of the pictures, in the order of their names."""
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    settings = tiny.settings.model_copy(update={"evaluate": tiny.settings.evaluate.model_copy(update={"beams": beams})})
    inputs = [RawInput(name, photos / name) for name in names]
    return [one.json() for one in load("captioning").predict(open_run(model, threads=1), inputs, settings, tiny.facts)]


def lines(path: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_a_table_and_lines_hold_the_caption_of_each_picture(tiny: Tiny, model: Path, photos: Path) -> None:
    expected = said(tiny, model, photos)
    assert len({one["caption"] for one in expected}) > 1
    status, told = call(model)
    assert status == 0 and "6 captions in " in told
    assert lines("captions.jsonl") == expected
    assert call(model, "--output", "mine.csv")[0] == 0
    with Path("mine.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == expected
    with pytest.raises(SlipwayError, match=r"--output mine.txt: the name must end with .jsonl or .csv"):
        call(model, "--output", "mine.txt")


def test_more_beams_give_what_a_search_with_so_many_gives(tiny: Tiny, model: Path, photos: Path) -> None:
    assert call(model, "--beams", "4")[0] == 0
    assert lines("captions.jsonl") == said(tiny, model, photos, beams=4) != said(tiny, model, photos)


def test_a_picture_that_cannot_be_read_is_named_and_the_others_captioned(tiny: Tiny, model: Path, photos: Path) -> None:
    expected = said(tiny, model, photos)
    whole = (photos / "0.png").read_bytes()
    (photos / "more" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "text.jpg").write_text("<html>404</html>")
    status, told = call(model, "--output", "mine.csv")
    assert status == 1
    assert "6 captions in " in told and "2 could not be read and were skipped:" in told
    assert "more/cut.png cannot be decoded" in told and "text.jpg is not a picture that can be decoded" in told
    with Path("mine.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == expected


def test_neither_torch_nor_transformers_is_imported(model: Path, photos: Path) -> None:
    code = (
        "from pathlib import Path; from cli.caption import caption\n"
        f"caption(Path('photos'), model=Path({str(model)!r}), output=Path('captions.jsonl'), beams=None, threads=1)"
    )
    assert not loaded(code, Path.cwd()) & {"torch", "transformers", "peft", "prefect", "dvc", "matplotlib"}
    assert len(lines("captions.jsonl")) == 6
