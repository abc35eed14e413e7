"""What a stage tells of its progress becomes a percentage and a few words."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.files import write_json
from flows.graph import Stage
from flows.progress_artifact import ProgressArtifact, artifact_key
from flows.results import metric_rows, print_results


class Shown(ProgressArtifact):
    """Keeps what it would show instead of sending it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, key="fit@tiny")
        self.shown: list[tuple[float, str]] = []

    def _show(self, percent: float, text: str) -> None:
        self.shown.append((percent, text))


def test_only_the_newest_whole_line_is_shown_and_only_when_it_moved(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    artifact = Shown(path)
    artifact.finish()
    path.write_text('{"title": "train", "done": 1, "total": 8, "note": ""}\n{"title": "train", "done": 2, "total": 8, "no')
    artifact.finish()
    artifact.finish()
    with path.open("a") as file:
        file.write('te": "loss 1.5"}\n')
    artifact.finish()
    artifact.update()
    assert artifact.shown == [(12.5, "train"), (25.0, "train, loss 1.5")]


def test_progress_without_a_known_end_shows_its_words(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text('{"title": "parse", "done": 70, "total": 0, "note": "70 rows"}\n')
    artifact = Shown(path)
    artifact.finish()
    assert artifact.shown == [(0.0, "parse, 70 rows")]


def test_keys_are_such_that_prefect_takes_them() -> None:
    assert artifact_key("progress", "train@visual_qa") == "progress-train-visual-qa"


def test_metrics_are_flattened_to_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.json").write_text('{"a": 1, "b": {"c": 0.5}, "best": true, "name": "x", "list": [1], "none": null}')
    rows = metric_rows([Stage("fit@w", "fit", (), 0, None, ("m.json", "missing.json"))])
    assert rows == [{"stage": "fit", "metric": "a", "value": 1}, {"stage": "fit", "metric": "b.c", "value": 0.5}]


@pytest.mark.parametrize(
    ("receipt", "said"),
    [
        (
            {"published": True, "version": "v2", "location": "registry/w/v2", "target": "file://registry"},
            "published: v2 at registry/w/v2",
        ),
        (
            {"published": False, "reason": "its accuracy 0.5 does not beat the 0.6 of v1"},
            "NOT published: its accuracy 0.5 does not beat",
        ),
    ],
)
def test_a_model_that_was_not_published_is_said_not_to_be(
    receipt: dict[str, object],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    print_results("w")
    assert capsys.readouterr().out == ""
    write_json(Path("data/publish/w/receipt.json"), receipt)
    print_results("w")
    assert capsys.readouterr().out.startswith(said)
