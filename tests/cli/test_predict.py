"""`slipway predict` uses the newest model, writes everything or says why not, and needs no torch."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import cv2
import pytest
import typer
from typer.testing import CliRunner

from cli.predict import newest_model, predict
from contracts.errors import SlipwayError
from tests.loading import loaded
from tests.serving.stand_in import picture, write_artifact, write_picture

ROOT = Path(__file__).parents[2]
app = typer.Typer()
app.command()(predict)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a published model and photographs, as the current one."""
    write_artifact(tmp_path / "registry" / "colours" / "v1")
    publish(tmp_path / "registry" / "colours", "v1")
    for name in ("a.png", "more/b.jpg", "more/c.bmp"):
        write_picture(tmp_path / "photos" / name, picture(120, 80, green=(8, 8, 64, 40)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def publish(folder: Path, version: str) -> None:
    (folder / "latest.json").write_text(json.dumps({"version": version}))


def call(*arguments: str) -> tuple[int, str]:
    """Exit status and output; an error that is raised is told as the command line tells it."""
    result = CliRunner().invoke(app, [*arguments, "--threads", "1"])
    if isinstance(result.exception, SlipwayError):
        return 1, f"error: {result.exception}"
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_a_folder_is_predicted_with_the_published_model(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, said = call("photos")
    assert status == 0
    assert "WARN" not in capfd.readouterr().err
    assert "segmentation model registry/colours/v1 (fp32), CPUExecutionProvider" in said
    assert "3 predicted" in said
    found = json.loads((project / "predictions" / "predictions.json").read_text())
    assert [one["image"] for one in found] == ["a.png", "more/b.jpg", "more/c.bmp"]
    assert [one["objects"][0]["class"] for one in found] == ["green"] * 3
    overlays = {
        path.relative_to(project / "predictions" / "overlays").as_posix() for path in project.rglob("overlays/**/*.*")
    }
    assert overlays == {"a.png", "more/b.jpg", "more/c.bmp.png"}
    drawn = cv2.imread(str(project / "predictions" / "overlays" / "a.png"))
    assert drawn is not None
    assert drawn.shape == (320, 480, 3)


def test_every_prediction_is_a_line_of_its_own(project: Path) -> None:
    call("photos", "--no-overlays")
    lines = (project / "predictions" / "predictions.json").read_text().splitlines()
    assert [json.loads(line.rstrip(","))["image"] for line in lines[1:-1]] == ["a.png", "more/b.jpg", "more/c.bmp"]
    assert not (project / "predictions" / "overlays").exists()


def test_one_file_can_be_predicted_and_the_output_chosen(project: Path) -> None:
    assert call("photos/a.png", "--output", "elsewhere/deep")[0] == 0
    assert (project / "elsewhere" / "deep" / "overlays" / "a.png").is_file()


def test_unreadable_files_are_named_skipped_and_end_with_a_failure(project: Path) -> None:
    (project / "photos" / "broken.jpg").write_bytes(b"\xff\xd8 cut off")
    status, said = call("photos")
    assert status == 1
    assert "3 predicted" in said
    assert "1 could not be read and were skipped:\n  photos/broken.jpg is not an image" in said
    found = json.loads((project / "predictions" / "predictions.json").read_text())
    assert [sorted(one) for one in found if "error" in one] == [["error", "image"]]


def test_the_confidence_can_be_set(project: Path) -> None:
    assert call("photos/a.png", "--confidence", "0.95")[0] == 0
    assert json.loads((project / "predictions" / "predictions.json").read_text())[0]["objects"] == []


def test_the_version_that_latest_names_is_used_and_not_the_highest(project: Path) -> None:
    write_artifact(project / "registry" / "colours" / "v2")
    assert newest_model() == Path("registry/colours/v1")
    publish(project / "registry" / "colours", "v2")
    assert newest_model() == Path("registry/colours/v2")


def test_the_registry_of_params_is_looked_at(project: Path) -> None:
    (project / "params.yaml").write_text("workloads: [segmentation]\nsegmentation: {publish: {target: 'file://shop'}}\n")
    (project / "registry").rename(project / "shop")
    assert newest_model() == Path("shop/colours/v1")


def test_without_a_published_model_the_quantized_one_is_used(project: Path) -> None:
    (project / "registry").rename(project / "away")
    write_artifact(project / "data" / "quantize" / "segmentation")
    assert newest_model() == Path("data/quantize/segmentation")


def test_the_newest_of_several_models_is_used(project: Path) -> None:
    write_artifact(project / "registry" / "other" / "v1")
    publish(project / "registry" / "other", "v1")
    os.utime(project / "registry" / "colours" / "latest.json", (1, 1))
    assert newest_model() == Path("registry/other/v1")


@pytest.mark.parametrize(
    ("harm", "arguments", "said"),
    [
        (lambda p: (p / "registry").rename(p / "away"), ["photos"], "no model found"),
        (
            lambda p: publish(p / "registry" / "colours", "v9"),
            ["photos"],
            r"names the version 'v9', and registry/colours/v9 is not there",
        ),
        (lambda p: publish(p / "registry" / "colours", "../.."), ["photos"], "is not there"),
        (lambda p: (p / "registry/colours/latest.json").write_text("{}"), ["photos"], "does not name a version"),
        (lambda p: (p / "registry/colours/latest.json").write_text("<"), ["photos"], "does not name a version"),
        (lambda p: None, ["nowhere"], "nowhere does not exist"),
        (lambda p: None, ["photos", "--model", "photos"], "artifact.json is missing"),
        (lambda p: None, ["photos", "--output", "photos/out"], "lies inside photos"),
        (lambda p: None, [".", "--output", "out"], "lies inside"),
        (lambda p: (p / "out").write_text(""), ["photos", "--output", "out"], "out is a file"),
        (
            lambda p: (p / "registry/colours/v1/graphs/segment.onnx").write_bytes(b"x"),
            ["photos"],
            "cannot be opened by ONNX Runtime",
        ),
    ],
)
def test_what_cannot_work_is_said_and_nothing_is_written(project: Path, harm, arguments: list[str], said: str) -> None:
    harm(project)
    status, text = call(*arguments)
    assert status == 1
    assert re.search(said, text), text
    assert not (project / "predictions").exists()


def test_a_model_of_another_version_of_slipway_is_refused_by_name(project: Path) -> None:
    path = project / "registry" / "colours" / "v1" / "artifact.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "settings": {"train": {"imgsz": 64}}}))
    assert "was made by another version of Slipway" in call("photos")[1]
    path.write_text(json.dumps({**value, "workload": "dreams"}))
    assert "there is no workload 'dreams'" in call("photos")[1]


def test_a_failure_midway_leaves_the_old_predictions(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call("photos/a.png")
    before = (project / "predictions" / "predictions.json").read_bytes()
    (project / "predictions" / "overlays" / "more").write_text("a file where a folder must be")
    with pytest.raises(OSError, match="more"):
        call("photos")
    assert (project / "predictions" / "predictions.json").read_bytes() == before
    assert not list((project / "predictions").glob(".*"))


def test_predicting_needs_no_torch(project: Path) -> None:
    code = (
        "from pathlib import Path; from cli.predict import predict\n"
        "predict(Path('photos'), model=None, output=Path('predictions'), confidence=None, threads=1, overlays=True)"
    )
    assert not loaded(code, project) & {"torch", "ultralytics", "prefect", "dvc", "matplotlib"}
