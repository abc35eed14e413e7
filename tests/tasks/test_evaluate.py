"""Stage evaluate on a small trained model."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from contracts import workload as workloads
from contracts.errors import SlipwayError
from contracts.files import read_json, write_json
from contracts.records import Records, write_records
from contracts.settings import Settings
from contracts.workload import Chart, Facts, Run, Scores, Told
from tasks import evaluate, report
from tests.tasks import digit_workload
from tests.tasks.digit_workload import NAME

if TYPE_CHECKING:
    from torch import nn

OUTPUT = Path("data/evaluate") / NAME


def test_metrics_are_flat_numbers_of_the_test_split(exported: Path) -> None:
    metrics = read_json(OUTPUT / "metrics.json")
    assert metrics["num"] == 200 and 0.8 < metrics["accuracy"] <= 1
    assert all(isinstance(value, int | float) for value in metrics.values())
    details = read_json(OUTPUT / "details" / "scores.json")
    assert [chart["kind"] for chart in details["charts"]] == ["lines", "matrix", "bars"] and len(details["rows"]) == 10


def test_the_gallery_holds_the_worst_and_the_best(exported: Path) -> None:
    entries = read_json(OUTPUT / "details" / "gallery.json")
    assert [entry["kind"] for entry in entries] == ["worst"] * 6 + ["best"] * 6
    worst, best = ([entry["quality"] for entry in entries if entry["kind"] == kind] for kind in ("worst", "best"))
    assert worst == sorted(worst) and best == sorted(best, reverse=True) and max(worst) < min(best)
    assert len({entry["key"] for entry in entries}) == 12
    for entry in entries:
        with Image.open(OUTPUT / "details" / entry["file"]) as picture:
            assert picture.size == (96, 96)


class Telling(digit_workload.Digits):
    """Digits that are told in words; `untrained` weights are fresh ones, or not to be had where `gone`."""

    gone = False

    def build(self, settings: Settings, facts: Facts, *, pretrained: bool = True) -> nn.Module:
        if pretrained and self.gone:
            raise SlipwayError("the base model has left the hub")
        return super().build(settings, facts, pretrained=pretrained)

    def tell(self, run: Run, records: Records, settings: Settings, facts: Facts) -> Iterator[Told]:
        for record, measure in zip(records, self.measure(run, records, settings, facts), strict=True):
            yield Told(np.zeros((8, 8, 3), np.uint8), [str(record.targets["digit"])], f"a {measure['found']}")


def test_what_was_said_before_training_stands_beside_what_is_said_after(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "load", lambda name: Telling())
    evaluate.run(NAME)
    first = read_json(OUTPUT / "details" / "told.json")
    rows = first["rows"]
    assert first["without_before"] is None and len({row["key"] for row in rows}) == 12
    assert [row["kind"] for row in rows] == ["best"] * 4 + ["median"] * 4 + ["worst"] * 4
    assert [row["quality"] for row in rows] == sorted((row["quality"] for row in rows), reverse=True)
    right = [[row[when] == f"a {row['references'][0]}" for row in rows] for when in ("before", "after")]
    assert sum(right[1]) >= 8 > sum(right[0]), "fresh weights know no digits"
    assert all((OUTPUT / "details" / row["file"]).is_file() for row in rows)
    evaluate.run(NAME)
    assert read_json(OUTPUT / "details" / "told.json") == first
    monkeypatch.setattr(Telling, "gone", True)
    evaluate.run(NAME)
    found = read_json(OUTPUT / "details" / "told.json")
    assert found["without_before"] == "the base model has left the hub"
    assert [row["after"] for row in found["rows"]] == [row["after"] for row in rows]
    assert {row["before"] for row in found["rows"]} == {None}


@pytest.mark.parametrize("num", [0, 1, 2, 3, 5, 12, 13, 200])
def test_each_record_is_told_at_most_once_best_first(num: int) -> None:
    qualities = [(7 * index % max(num, 1)) / 10 for index in range(num)]
    chosen = evaluate.spread_over_quality(qualities)
    found = [qualities[index] for _, index in chosen]
    assert len({index for _, index in chosen}) == len(chosen) == min(num, 12)
    assert found == sorted(found, reverse=True)
    assert not num or (max(qualities) == found[0] and min(qualities) == found[-1])


def set_beside(**folders: str) -> None:
    Path("params.yaml").write_text(json.dumps({NAME: {"evaluate": {"beside": folders}}}))


def test_another_model_is_scored_on_the_same_records(exported: Path) -> None:
    set_beside(earlier=f"data/export/{NAME}")
    evaluate.run(NAME)
    found = read_json(OUTPUT / "details" / "scores.json")
    assert found["beside"] == {"earlier": found["metrics"]}, "it is the same model"
    report.run(NAME)
    pages = Path("data/report") / NAME
    for page in ("report.html", "report.md"):
        assert "earlier" in (pages / page).read_text()


def test_another_model_must_be_there_and_of_the_same_kind(exported: Path) -> None:
    set_beside(earlier="registry/gone")
    with pytest.raises(SlipwayError, match=r"registry/gone/artifact\.json is missing"):
        evaluate.run(NAME)
    set_beside(earlier=f"data/export/{NAME}")
    path = Path("data/export") / NAME / "artifact.json"
    artifact = read_json(path)
    for changed, told in (
        ({"workload": "segmentation"}, "a model of segmentation"),
        ({"facts": {"classes": ["a"]}}, r"knows classes \['a'\], and the data have \['0', "),
    ):
        write_json(path, {**artifact, **changed})
        with pytest.raises(SlipwayError, match=f"{NAME}\\.evaluate\\.beside: earlier: .* {told}"):
            evaluate.run(NAME)


def test_the_main_lines_of_other_models_join_the_chart_of_their_title() -> None:
    def chart(title: str, height: float) -> Chart:
        lines = {"model": ([1, 2], [0.0, height]), "random": ([1, 2], [0.1, 0.1])}
        return Chart(title, "lines", "x", "y", lines, "model", {"model": ([0.0, 0.0], [1.0, height])})

    others = {"plain": Scores({}, charts=[chart("Returns", 0.9), chart("Losses", 0.2)])}
    found = evaluate.compared(chart("Returns", 0.5), others)
    assert {name: line[1][1] for name, line in found.lines.items()} == {"model": 0.5, "random": 0.1, "plain": 0.9}
    assert found.bands["plain"] == ([0.0, 0.0], [1.0, 0.9])


def test_dvc_finds_actual_and_predicted_a_row_each(exported: Path) -> None:
    with (OUTPUT / "confusion.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = sum(row["actual"] == row["predicted"] for row in rows) / len(rows)
    assert len(rows) == 200 and right == pytest.approx(read_json(OUTPUT / "metrics.json")["accuracy"])
    with (OUTPUT / "curves.csv").open() as file:
        assert next(csv.reader(file)) == ["digit", "right", "mean"]


def test_a_matrix_of_shares_with_predictions_in_rows_is_turned(tmp_path: Path) -> None:
    chart = Chart("", "matrix", "true class", "predicted class", matrix=[[0.75, 0.0], [0.25, 1.0]], labels=["cat", "dog"])
    evaluate.write_confusion(tmp_path / "confusion.csv", chart)
    rows = (tmp_path / "confusion.csv").read_text().split()[1:]
    assert {row: rows.count(row) for row in rows} == {"cat,cat": 75, "cat,dog": 25, "dog,dog": 100}


def test_nothing_to_draw_still_gives_files_that_dvc_can_read(tmp_path: Path) -> None:
    evaluate.write_curves(tmp_path / "curves.csv", None)
    evaluate.write_confusion(tmp_path / "confusion.csv", None)
    assert (tmp_path / "curves.csv").read_text().split() == ["x,mean"]
    assert (tmp_path / "confusion.csv").read_text().split() == ["actual,predicted"]


def test_an_empty_test_split_is_refused_with_the_way_out(project: Path) -> None:
    folder = Path("data/parse") / NAME
    kept = [record for record in Records.open(folder, root=Path()) if record.split != "test"]
    write_records(folder, kept, inputs=digit_workload.schema()[0], targets=digit_workload.schema()[1], shares=(1, 0, 0))
    with pytest.raises(SlipwayError, match=r"test split of digits has no records.*digits\.parse\.shares"):
        evaluate.run(NAME)
    assert not OUTPUT.exists()


def test_a_model_that_was_not_trained_is_named(project: Path) -> None:
    (Path("data/train") / NAME / "model" / "weights.safetensors").unlink()
    with pytest.raises(SlipwayError, match=r"weights\.safetensors is missing: run the train stage"):
        evaluate.run(NAME)
    (Path("data/train") / NAME / "model" / "spec.json").unlink()
    with pytest.raises(SlipwayError, match=r"spec\.json is missing: run the train stage"):
        evaluate.run(NAME)


def test_weights_of_another_network_are_refused(project: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"1.weight": torch.zeros(3)}, Path("data/train") / NAME / "model" / "weights.safetensors")
    with pytest.raises(SlipwayError, match=r"(?s)does not fit the network.*size mismatch for 1.weight"):
        evaluate.run(NAME)


def test_the_command_prints_the_error_alone() -> None:
    done = subprocess.run([sys.executable, "-m", "tasks.evaluate", "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_curves_on_different_grids_share_one(tmp_path: Path) -> None:
    chart = Chart("", "lines", "recall", "precision", {"a": ([0, 1], [1, 0]), "b": ([1, 0.5, 0], [0, 1, 1])})
    evaluate.write_curves(tmp_path / "curves.csv", chart)
    table = np.genfromtxt(tmp_path / "curves.csv", delimiter=",", names=True)
    assert table.dtype.names == ("recall", "a", "b", "mean") and len(table) == 101
    assert table["mean"][50] == pytest.approx(0.75)
