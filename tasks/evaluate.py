"""Stage evaluate: the trained weights on the test split, run by torch, as metrics, tables, charts and pictures."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from contracts.files import replace_when_complete, write_json
from contracts.records import Records
from contracts.workload import Chart, Measure, Run, Scores
from tasks.stage import folder, stage_main
from tasks.trained import Trained, plain

NUM_PICTURES = 6
CURVE_POINTS = 101
CONFUSION_ROWS = 20_000


def run(workload: str) -> None:
    """Score the test split and write data/evaluate/`workload`.

    Raises:
        SlipwayError: when nothing was trained or the test split is empty.
    """
    trained = Trained.open(workload)
    records = trained.split("test", why="evaluation")
    import torch

    from engine.torch_runtime import torch_run

    torch_graphs = torch_run(trained.graphs(), "cuda" if torch.cuda.is_available() else "cpu")
    scores, measures = trained.score(torch_graphs, records, f"evaluating {workload}")
    with replace_when_complete(folder("evaluate", workload)) as output:
        write_scores(output, scores, num=len(records))
        write_gallery(output / "details", trained, torch_graphs, records, measures)
    name = trained.workload.metric.name
    print(f"{workload}: {name} {scores.metrics[name]:.4f} on the {len(records)} records of the test split")


def write_scores(output: Path, scores: Scores, *, num: int) -> None:
    """metrics.json, details/scores.json and, for DVC, curves.csv and confusion.csv."""
    (output / "details").mkdir(parents=True)
    metrics = {name: float(value) for name, value in scores.metrics.items()}
    write_json(output / "metrics.json", {**metrics, "num": num})
    charts = [dataclasses.asdict(chart) for chart in scores.charts]
    details = {"metrics": metrics, "rows": list(scores.rows), "charts": charts, "meanings": dict(scores.meanings)}
    write_json(output / "details" / "scores.json", plain(details))
    lines = next((chart for chart in scores.charts if chart.kind == "lines"), None)
    matrix = next((chart for chart in scores.charts if chart.kind == "matrix"), None)
    write_curves(output / "curves.csv", lines)
    write_confusion(output / "confusion.csv", matrix)


def write_curves(path: Path, chart: Chart | None) -> None:
    """The first line chart on one grid of x values: a column for x, one a line, and last, for DVC to draw, their mean."""
    lines = {name: np.asarray(line, dtype=float) for name, line in (chart.lines if chart else {}).items() if len(line[0])}
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        if not lines:
            table.writerow([chart.x if chart else "x", "mean"])
            return
        grid = np.linspace(min(x.min() for x, _ in lines.values()), max(x.max() for x, _ in lines.values()), CURVE_POINTS)
        columns = {name: np.interp(grid, *_ascending(x, y)) for name, (x, y) in lines.items()}
        columns["mean"] = columns.pop("mean", np.mean(list(columns.values()), axis=0))
        table.writerow([chart.x if chart else "x", *columns])
        for row in zip(grid, *columns.values(), strict=True):
            table.writerow([f"{value:.5g}" for value in row])


def _ascending(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(x, kind="stable")
    return x[order], y[order]


def write_confusion(path: Path, chart: Chart | None) -> None:
    """The first matrix as DVC's confusion template wants it, a row for each pair counted: actual, predicted.

    Shares are given as so many in a hundred, and very large counts are scaled down together, so that the file stays small.
    """
    numbers = np.nan_to_num(np.asarray(chart.matrix if chart and len(chart.matrix) else [[]], dtype=float))
    numbers = numbers.T if chart and "predicted" in chart.y else numbers
    scale = 100.0 if numbers.size and numbers.max() <= 1 else min(1.0, CONFUSION_ROWS / max(numbers.sum(), 1))
    counts = np.rint(numbers * scale).astype(int)
    labels = list(chart.labels) if chart else []
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["actual", "predicted"])
        for actual, row in zip(labels, counts, strict=False):
            for predicted, count in zip(labels, row, strict=False):
                table.writerows([[actual, predicted]] * int(count))


def write_gallery(details: Path, trained: Trained, run: Run, records: Records, measures: Sequence[Measure]) -> None:
    """The worst and the best records by their measure's "quality" as pictures, and gallery.json, which describes them."""
    from PIL import Image

    order = np.argsort([float(measure.get("quality", 0.0)) for measure in measures], kind="stable")
    num = min(NUM_PICTURES, (len(order) + 1) // 2)
    chosen = [("worst", index) for index in order[:num]] + [
        ("best", index) for index in order[::-1][: len(order) - num][:num]
    ]
    (details / "gallery").mkdir()
    pictures = trained.workload.gallery(run, records.take([index for _, index in chosen]), trained.settings, trained.facts)
    entries = []
    for place, ((kind, index), (caption, picture)) in enumerate(zip(chosen, pictures, strict=True)):
        name = f"gallery/{kind}_{place % num + 1}.png"
        Image.fromarray(np.ascontiguousarray(picture[..., ::-1])).save(details / name)
        quality = float(measures[index].get("quality", 0.0))
        entries.append({"file": name, "kind": kind, "caption": caption, "key": records[int(index)].key, "quality": quality})
    write_json(details / "gallery.json", entries)


if __name__ == "__main__":
    stage_main(run)
