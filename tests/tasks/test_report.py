"""Stage report: one page without network that escapes what it shows, says what is missing, and has a Markdown twin."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from contracts.files import read_json, write_json
from contracts.workload import Chart
from engine.telemetry import sample
from tasks import report
from tasks.reporting.charts import draw, plotted
from tasks.reporting.findings import kind_of, read_quarantine, training_charts
from tests.tasks.digit_workload import NAME

EVIL = "<script>alert('x')</script>|_$a$"
OUTPUT = Path("data/report") / NAME


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def complete(exported: Path) -> Path:
    """A project in which every stage left its files."""
    data = exported / "data"
    rows = [(step, step / 10, 9 / step, 4 / step, 0.003, step / 40 if step % 10 == 0 else "") for step in range(1, 31)]
    lines = ["step,epoch,loss,box_loss,learning_rate,accuracy", *(",".join(map(str, row)) for row in rows)]
    (data / "train" / NAME / "curves.csv").write_text("\n".join(lines) + "\n")
    result = {"steps": 30, "epochs": 3.0, "best_epoch": 3, "metrics": {}, "seconds": 75.0, "samples_per_second": 40.0}
    write_json(data / "train" / NAME / "result.json", {**result, "resumed_from": 12, "stopped_early": False})
    write_json(
        data / "train" / NAME / "plan.json", {"backend": "ddp", "ranks": 2, "reasons": {"backend": f"two cores {EVIL}"}}
    )
    (data / "plan" / NAME).mkdir(parents=True)
    (data / "plan" / NAME / "report.txt").write_text(f"Processor: {EVIL}\n")
    write_json(data / "parse" / NAME / "summary.json", {"format": "coco", "records": {"train": 600, "test": 200}})
    table = "file,row,value,reason\n" + "".join(
        f"labels.csv,{row},{EVIL},polygon has {row % 3} points\n" for row in range(20)
    )
    (data / "parse" / NAME / "quarantine.csv").write_text(table)
    metrics = {"metric": "accuracy", "chosen": "int8", "budget": 0.01, "min_speedup": 1.05}
    sizes = {"torch": (0.92, 157_000, 3.1), "fp32": (0.92, 159_000, 1.5), "int8": (0.918, 50_000, 1.0)}
    shown = [{"name": name, "metric": a, "bytes": b, "latency_ms": c} for name, (a, b, c) in sizes.items()]
    write_json(data / "quantize" / NAME / "comparison.json", {**metrics, "split": "test", "rows": shown, "passed": True})
    tried = {
        "name": "int8",
        "status": "chosen",
        "reason": "1.50 times as fast",
        "metric": 0.9,
        "loss_share": 0.0,
        "latency_ms": 1.0,
    }
    tried |= {"fp32_latency_ms": 1.5, "speedup": 1.5, "bytes": 50_000}
    empty = dict.fromkeys(("metric", "loss_share", "latency_ms", "fp32_latency_ms", "speedup", "bytes"))
    skipped = {"name": "fp16", "status": "skipped", "reason": "the CPU has none", **empty}
    told = {**metrics, "split": "val", "reference": 0.9, "reason": "int8 ships", "rows": [tried, skipped]}
    write_json(data / "quantize" / NAME / "candidates.json", told)
    outs = [{"path": f"data/train/{NAME}/model", "md5": "0123456789abcdef.dir", "size": 12}]
    lock = {
        f"train@{NAME}": {"outs": outs},
        f"report@{NAME}": {"outs": [{"path": "x", "md5": "feed"}]},
        "train@other": {"outs": outs},
    }
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": lock}))
    return exported


def rendered() -> tuple[str, str]:
    report.run(NAME)
    return (OUTPUT / "report.html").read_text(), (OUTPUT / "report.md").read_text()


def test_the_page_shows_every_stage(complete: Path) -> None:
    page = Page(rendered()[0])
    for words in (
        "int8 ships: 1.50× as fast as fp32",
        "0.9180",
        "Training loss",
        "accuracy on the val split",
        "Confusion",
        "The worst",
        "Largest difference",
        "the CPU has none",
        "polygon has # points",
        "two cores",
        "0123456789abcdef.dir",
        "resumed from step 12",
    ):
        assert words in page.text, words
    assert "feed" not in page.text, "hashes of later stages are those of another run"
    assert sum(tag == "svg" for tag, _ in page.tags) == 3 + 4
    assert sum(tag == "img" for tag, _ in page.tags) == 12
    assert "Not in this report" not in page.text


@pytest.mark.parametrize(("metric", "note"), [(0.918, "0.217% given away to fp32"), (0.9292, "1% gained over fp32")])
def test_what_ships_is_set_beside_fp32_in_words(complete: Path, metric: float, note: str) -> None:
    path = Path("data") / "quantize" / NAME / "comparison.json"
    comparison = read_json(path)
    comparison["rows"][-1]["metric"] = metric
    write_json(path, comparison)
    assert note in Page(rendered()[0]).text


def test_the_page_needs_no_network_and_runs_no_code(complete: Path) -> None:
    html, _ = rendered()
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "form"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
    assert all(place.startswith("#") for place in re.findall(r"url\(['\"]?([^'\")]*)", html))
    assert (
        "@import" not in html
        and 'name="viewport"' in html
        and "prefers-color-scheme: dark" in html
        and "@media print" in html
    )


def test_class_names_that_hold_html_are_text(complete: Path) -> None:
    path = Path("data/evaluate") / NAME / "details"
    scores, gallery = read_json(path / "scores.json"), read_json(path / "gallery.json")
    scores["rows"][0]["class"] = gallery[0]["caption"] = EVIL
    scores["charts"][1]["labels"] = [EVIL, *"123456789"]
    scores["charts"][0]["lines"] = {EVIL: [[0, 1], [1, 0]], "mean": [[0, 1], [1, None]]}
    scores["charts"][0]["title"] = EVIL
    scores["charts"][1]["title"] = f"{EVIL}!"
    write_json(path / "scores.json", scores)
    write_json(path / "gallery.json", gallery)
    html, markdown = rendered()
    assert len(list(OUTPUT.glob("charts/*"))) == 7, "the picture of one chart was written over another's"
    assert "<script" not in html and "<script" not in markdown
    assert Page(html).text.count("<script>alert('x')</script>") >= 6
    row = next(line for line in markdown.splitlines() if line.startswith("| &lt;script&gt;"))
    assert r"\|\_" in row and len(re.findall(r"(?<!\\)\|", row)) == 3


def test_what_was_said_before_training_and_after_it_is_a_table(complete: Path) -> None:
    from PIL import Image

    details = Path("data/evaluate") / NAME / "details"
    (details / "told").mkdir()
    Image.new("RGB", (2000, 1000)).save(details / "told" / "1.png")
    row = {"file": "told/1.png", "kind": "best", "key": "b.png", "quality": 0.875, "references": [f"a cat {EVIL}"]}
    rows = [row | {"before": "mumble", "after": "a cat"}, row | {"before": None, "after": "", "kind": "worst"}]
    write_json(details / "told.json", {"rows": rows, "without_before": None})
    html, markdown = rendered()
    page = Page(html)
    assert "mumble" in page.text and "0.88" in page.text and "Before training and after" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 12 + 2 and "<script" not in html + markdown
    assert "| b.png (best) | a cat &lt;script" in markdown and "| mumble | a cat |" in markdown
    write_json(details / "told.json", {"rows": rows, "without_before": f"gone {EVIL}"})
    html, markdown = rendered()
    assert "What was said before training is not known: gone" in Page(html).text and "not known: gone" in markdown


def test_notes_on_the_scores_and_the_layout_for_other_tools_are_shown(complete: Path) -> None:
    assert not any("laid out for other tools" in text for text in rendered())
    scores, parity = (
        Path("data") / stage / NAME / name
        for stage, name in (("evaluate", "details/scores.json"), ("export", "parity.json"))
    )
    write_json(scores, {**read_json(scores), "notes": [f"no CLIP {EVIL}"]})
    found = read_json(parity)
    write_json(parity, {**found, "layout": {**found["metric"], "onnx": 0.8765, "files": ["elsewhere/model.onnx"]}})
    html, markdown = rendered()
    assert f"no CLIP {EVIL}" in Page(html).text and "no CLIP" in markdown and "<script" not in html + markdown
    assert "(elsewhere/model.onnx) scores 0.8765" in Page(html).text and "scores 0.8765, called" in markdown


def test_a_workload_that_tells_nothing_has_no_such_table(complete: Path) -> None:
    assert not any("Before training" in text for text in rendered())


def test_what_is_missing_is_said(project: Path) -> None:
    html, markdown = rendered()
    for words in (
        "the scores of the test split (stage evaluate)",
        "training curves (stage train)",
        "the quarantine (stage parse)",
    ):
        assert words in Page(html).text and words in markdown
    assert "There is none: the stage plan has not run." in html


def test_the_markdown_twin_has_tables_and_charts_beside_it(complete: Path) -> None:
    _, markdown = rendered()
    assert "| accuracy | 0.9" in markdown and "| Share of the digits that were told right. |" in markdown
    assert "| int8 (ships) | 0.9180 | 50 kB | 1 ms | 1.50× |" in markdown
    assert "data:" not in markdown and "<" not in markdown
    linked = re.findall(r"!\[[^]]+\]\((.+)\)", markdown)
    assert len(linked) == 7 and sorted(linked) == sorted(f"charts/{path.name}" for path in OUTPUT.glob("charts/*"))
    for name in linked:
        with Image.open(OUTPUT / name) as picture:
            shades = np.asarray(picture.convert("L"))
            assert shades[0, 0] == 255 and shades.min() < 100, name
    tables = [block.split("\n") for block in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)]
    assert len(tables) == 4
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table if line}) == 1, table
    assert "Verdict" in markdown and "- format: coco" in markdown and "train 600, test 200" in markdown


def test_the_same_findings_give_the_same_page(complete: Path) -> None:
    assert rendered() == rendered()


def test_a_chart_takes_the_colours_of_the_page() -> None:
    text = draw(Chart("", "lines", "x", "y", {"mean": ([0, 1], [1, 0])}))
    assert "currentColor" in text and "var(--line)" in text and "#010203" not in text and "<metadata" not in text
    assert (
        text.startswith("<svg") and 'viewBox="' in text[:200] and "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", text)
    )


@pytest.mark.parametrize("num", [0, 1, 80])
def test_charts_of_any_number_of_classes_are_drawn(num: int) -> None:
    names = [f"class {index}" for index in range(num)]
    matrix: list[list[float]] = [[float(row == column) for column in range(num)] for row in range(num)]
    draw(Chart("", "lines", "x", "y", {name: ([0, 1], [1, 0]) for name in names}))
    draw(Chart("", "bars", "x", "y", {"n": (range(num), range(num))}, labels=names))
    assert draw(Chart("", "matrix", "true", "predicted", matrix=matrix, labels=names)).startswith("<svg")


def test_the_loss_its_parts_and_the_metric_get_a_chart_each() -> None:
    took = {"gradient_norm": 7.5, "step_seconds": 0.2, "data_wait_share": 0.1, "samples_per_second": 80.0}
    rows: list[dict[str, Any]] = [
        {"epoch": 1.0, "loss": 3, "box_loss": 1, "learning_rate": 0.1, **took, **sample(torch.device("cpu"))},
        {"epoch": 1.0, "map": 0.5, "f1": 0.2},
    ]
    assert [list(chart.lines) for chart in training_charts(rows, "map", ["map", "f1"])] == [
        ["loss"],
        ["box_loss"],
        ["map"],
        ["learning_rate"],
        ["gradient_norm"],
    ]


def test_a_model_that_will_not_be_published_is_shown_with_the_reason(complete: Path) -> None:
    path = Path("data/quantize") / NAME / "comparison.json"
    write_json(path, {**read_json(path), "passed": False, "reason": "fp32 on val: it has learnt nothing"})
    html, markdown = rendered()
    assert "fp32 on val: it has learnt nothing; it is not published" in html and "it has learnt nothing" in markdown


def test_quarantined_rows_are_counted_by_kind_of_reason(tmp_path: Path) -> None:
    (tmp_path / "quarantine.csv").write_text(
        "file,row,value,reason\na,1,x,polygon has 2 points\na,2,x,polygon has 1 points\nb,,,unreadable: b\n"
    )
    found = read_quarantine(tmp_path / "quarantine.csv")
    assert found and found["total"] == 3 and found["reasons"] == [("polygon has # points", 2), ("unreadable", 1)]
    assert kind_of("") == "" and read_quarantine(tmp_path / "nothing.csv") is None


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("mask_map50_95", "mask mAP50-95"),
        ("box_ap50", "box AP50"),
        ("num", "number of records"),
        ("num_images", "number of images"),
        ("accuracy", "accuracy"),
    ],
)
def test_measurements_have_names_for_people(name: str, title: str) -> None:
    assert report.humane(name) == title


def test_long_names_below_bars_are_turned_and_bars_of_nothing_stand_on_the_ground() -> None:
    names = ["gender", "race and ethnicity", "nationality", "religion", "disability", "age", "sexual orientation"]
    figure = plotted(Chart("", "bars", "group", "share", {"found": (range(7), [0.0] * 7)}, labels=names), 3.2)
    axes = figure.axes[0]
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {30.0} and axes.get_ylim()[0] == 0
    few = plotted(Chart("", "bars", "group", "share", {"found": (range(3), [1, 2, 3])}, labels=names[:3]), 3.2)
    assert {label.get_rotation() for label in few.axes[0].get_xticklabels()} == {0.0}
