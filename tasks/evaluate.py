"""Stage evaluate: the trained weights on the test split, run by torch, as metrics, tables, charts and pictures."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from contracts.errors import SlipwayError
from contracts.files import replace_when_complete, write_json
from contracts.pictures import write_picture
from contracts.records import Records
from contracts.workload import Chart, Graph, Measure, Run, Scores, Tells
from serving.runtime import Artifact, open_run
from tasks.stage import folder, stage_main
from tasks.trained import Trained, plain

NUM_PICTURES = 6
NUM_TOLD = 4
CURVE_POINTS = 101
CONFUSION_ROWS = 20_000


def run(workload: str) -> None:
    """Score the test split and write data/evaluate/`workload`.

    Raises:
        SlipwayError: when nothing was trained or the test split is empty.
    """
    trained = Trained.open(workload)
    records = trained.split("test", why="evaluation")
    torch_graphs = on_this_machine(trained.graphs())
    others = dict(beside(trained, records))
    scores, measures = trained.score(torch_graphs, records, f"evaluating {workload}")
    with replace_when_complete(folder("evaluate", workload)) as output:
        write_scores(output, scores, others, num=len(records))
        write_gallery(output / "details", trained, torch_graphs, records, measures)
        if isinstance(trained.workload, Tells):
            write_told(output / "details", trained, trained.workload, torch_graphs, records, measures)
    name = trained.workload.metric.name
    print(f"{workload}: {name} {scores.metrics[name]:.4f} on the {len(records)} records of the test split")


def on_this_machine(graphs: Mapping[str, Graph]) -> Run:
    """The graphs by torch, on a GPU where there is one."""
    import torch

    from engine.torch_runtime import torch_run

    return torch_run(graphs, "cuda" if torch.cuda.is_available() else "cpu")


def beside(trained: Trained, records: Records) -> Iterator[tuple[str, Scores]]:
    """The scores of the models that `evaluate.beside` names, on the same records.

    Raises:
        SlipwayError: when one is missing, is of another workload, or its `comparable` facts are not those of the data.
    """
    for name, place in trained.settings.evaluate.beside.items():
        artifact, here = Artifact.read(Path(place)), f"{trained.name}.evaluate.beside: {name}: {place}"
        if artifact.workload != trained.name:
            raise SlipwayError(f"{here} is a model of {artifact.workload}")
        for fact in trained.facts.get("comparable", ()):
            known, wanted = artifact.facts.get(fact), trained.facts[fact]
            if known != wanted:
                raise SlipwayError(
                    f"{here} knows {fact} {known}, and the data have {wanted}: it cannot be scored on the same records"
                )
        settings = trained.settings.model_copy(update={"train": artifact.settings_read().train})
        other = dataclasses.replace(trained, settings=settings, facts={**trained.facts, **artifact.facts})
        yield name, other.score(open_run(artifact.folder), records, f"evaluating {name}")[0]


def compared(chart: Chart, others: Mapping[str, Scores]) -> Chart:
    """A chart of lines with the main ones of the other models' charts of that title."""
    lines, bands = dict(chart.lines), dict(chart.bands)
    for name, scores in others.items():
        for other in scores.charts:
            if other.title == chart.title and other.main in other.lines:
                lines[name] = other.lines[other.main]
                bands |= {name: other.bands[other.main]} if other.main in other.bands else {}
    return dataclasses.replace(chart, lines=lines, bands=bands)


def write_scores(output: Path, scores: Scores, others: Mapping[str, Scores], *, num: int) -> None:
    """metrics.json, details/scores.json and, for DVC, curves.csv and confusion.csv."""
    (output / "details").mkdir(parents=True)
    metrics = {name: float(value) for name, value in scores.metrics.items()}
    write_json(output / "metrics.json", {**metrics, "num": num})
    scores = dataclasses.replace(scores, charts=[compared(chart, others) for chart in scores.charts])
    charts = [dataclasses.asdict(chart) for chart in scores.charts]
    told = {"meanings": dict(scores.meanings), "notes": list(scores.notes), "elsewhere": dict(scores.elsewhere)}
    told["beside"] = {name: dict(one.metrics) for name, one in others.items()}
    write_json(
        output / "details" / "scores.json", plain({"metrics": metrics, "rows": list(scores.rows), "charts": charts, **told})
    )
    lines = next((chart for chart in scores.charts if chart.kind == "lines"), None)
    matrix = next((chart for chart in scores.charts if chart.kind == "matrix"), None)
    write_curves(output / "curves.csv", lines)
    write_confusion(output / "confusion.csv", matrix)


def write_curves(path: Path, chart: Chart | None) -> None:
    """The first line chart on one grid of x values: a column for x, one a line, and last, for DVC to draw, the main one, or
    their mean."""
    lines = {name: np.asarray(line, dtype=float) for name, line in (chart.lines if chart else {}).items() if len(line[0])}
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        if not lines:
            table.writerow([chart.x if chart else "x", chart.main if chart else "mean"])
            return
        grid = np.linspace(min(x.min() for x, _ in lines.values()), max(x.max() for x, _ in lines.values()), CURVE_POINTS)
        columns = {name: np.interp(grid, *_ascending(x, y)) for name, (x, y) in lines.items()}
        main = chart.main if chart else "mean"
        columns[main] = columns.pop(main, np.mean(list(columns.values()), axis=0))
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
    order = np.argsort([float(measure.get("quality", 0.0)) for measure in measures], kind="stable")
    num = min(NUM_PICTURES, (len(order) + 1) // 2)
    chosen = [("worst", index) for index in order[:num]] + [
        ("best", index) for index in order[::-1][: len(order) - num][:num]
    ]
    (details / "gallery").mkdir()
    pictures = trained.workload.gallery(run, records.take([index for _, index in chosen]), trained.settings, trained.facts)
    entries = []
    for place, ((kind, index), (caption, picture)) in enumerate(zip(chosen, pictures, strict=True)):
        name = f"gallery/{kind}_{place % num + 1}.{'gif' if picture.ndim == 4 else 'png'}"
        write_picture(details / name, picture)
        quality = float(measures[index].get("quality", 0.0))
        entries.append({"file": name, "kind": kind, "caption": caption, "key": records[int(index)].key, "quality": quality})
    write_json(details / "gallery.json", entries)


def write_told(
    details: Path, trained: Trained, workload: Tells, run: Run, records: Records, measures: Sequence[Measure]
) -> None:
    """What was said before training and after it of some records: told.json, and their pictures.

    Only for these does the untrained model run. Where its base models are not to be had any more, the reason stands in their
    place.
    """
    from PIL import Image

    chosen = spread_over_quality([float(measure.get("quality", 0.0)) for measure in measures])
    some = records.take([index for _, index in chosen])
    after = workload.tell(run, some, trained.settings, trained.facts)
    try:
        fresh = on_this_machine(trained.untrained_graphs())
        before = [one.answer for one in workload.tell(fresh, some, trained.settings, trained.facts)]
        reason = None
    except SlipwayError as error:
        before, reason = [None] * len(some), str(error)
    (details / "told").mkdir()
    rows = []
    for place, ((kind, index), earlier, told) in enumerate(zip(chosen, before, after, strict=True)):
        name = f"told/{place + 1}.png"
        Image.fromarray(np.ascontiguousarray(told.picture[..., ::-1])).save(details / name)
        row = {"file": name, "kind": kind, "key": records[index].key, "quality": float(measures[index].get("quality", 0.0))}
        rows.append({**row, "references": list(told.references), "before": earlier, "after": told.answer})
    write_json(details / "told.json", {"rows": rows, "without_before": reason})


def spread_over_quality(qualities: Sequence[float], *, num: int = NUM_TOLD) -> list[tuple[str, int]]:
    """`num` of the best, of those around the median and of the worst, by index, best first; each at most once.

    Equal ones stand in the order of the records, so that the same measures choose the same.
    """
    order = np.argsort(-np.asarray(qualities), kind="stable").tolist()
    num = min(num, -(-len(order) // 3))
    middle = max(0, (len(order) - num) // 2)
    parts = {"best": order[:num], "median": order[middle : middle + num], "worst": order[-num:]}
    kinds: dict[int, str] = {}
    for kind in ("best", "worst", "median"):
        for index in parts[kind]:
            kinds.setdefault(index, kind)
    return [(kind, index) for kind in parts for index in order if kinds.get(index) == kind]


if __name__ == "__main__":
    stage_main(run)
