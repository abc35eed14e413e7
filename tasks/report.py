"""Stage report: what was measured, on one page that needs no network, and its Markdown twin for the model card, with its charts as
pictures beside it."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts import workload as workloads
from contracts.files import replace_when_complete
from contracts.settings import Settings
from contracts.workload import Chart, Metric
from tasks.reporting.charts import draw, png
from tasks.reporting.findings import Findings, training_charts
from tasks.stage import folder, stage_main

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent / "reporting"
MAX_PICTURE, MAX_PNG = 640, 60_000
MAX_TOLD = 320
MAX_LISTED = 8
MISSING = "–"
# Names of measurements that read badly once their underscores are spaces.
TITLES = {
    "map50 95": "mAP50-95",
    "map50": "mAP50",
    "ap50 95": "AP50-95",
    "ap50": "AP50",
    "^num$": "number of records",
    "^num": "number of",
}


def run(workload: str) -> None:
    """Write data/report/`workload`: report.html and report.md. Whatever stage did not run is named on the page."""
    findings = Findings.gather(workload)
    values = page(findings, workloads.load(workload).metric, workloads.settings_of(workload))
    with replace_when_complete(folder("report", workload)) as output:
        (output / "charts").mkdir(parents=True)
        for one in (*values["charts"], *values["training"]):
            (output / one["file"]).write_bytes(one["png"])
        (output / "report.html").write_text(html().get_template("report.html.j2").render(values), encoding="utf-8")
        (output / "report.md").write_text(markdown().get_template("report.md.j2").render(values), encoding="utf-8")
    print(f"{workload}: report at {folder('report', workload) / 'report.html'}")


def page(findings: Findings, metric: Metric, settings: Settings) -> dict[str, Any]:
    """Everything the templates show."""
    rows = headline(findings, metric)
    names = list(findings.metrics or {})
    training = training_charts(findings.curves or [], metric.name, names)
    charts = [Chart(**chart) for chart in (findings.scores or {}).get("charts", [])]
    figures = [figure(chart, place) for place, chart in enumerate([*training, *charts], start=1)]
    return {
        "found": findings,
        "metric": metric,
        "rows": rows,
        "shipped": next((row for row in rows if row["shipped"]), None),
        "candidates": candidate_rows(findings.candidates, rows),
        "training": figures[: len(training)],
        "charts": figures[len(training) :],
        "table": table((findings.scores or {}).get("rows", [])),
        "meanings": (findings.scores or {}).get("meanings", {}),
        "notes": (findings.scores or {}).get("notes", []),
        "beside": (findings.scores or {}).get("beside", {}),
        "pictures": pictures(findings),
        "told": told(findings),
        "settings": as_yaml(settings),
        "missing": missing(findings),
    }


def headline(findings: Findings, metric: Metric) -> list[dict[str, Any]]:
    """torch, fp32 and what ships, each with its ratios to fp32: `speedup`, `smaller` (times), `loss_share`."""
    comparison = findings.comparison
    if not comparison:
        return []
    fp32 = next(row for row in comparison["rows"] if row["name"] == "fp32")
    return [
        {
            **row,
            "shipped": row["name"] == comparison["chosen"],
            "speedup": fp32["latency_ms"] / row["latency_ms"],
            "smaller": fp32["bytes"] / max(row["bytes"], 1),
            "loss_share": metric.loss_share(row["metric"], fp32["metric"])
            if None not in (row["metric"], fp32["metric"])
            else None,
        }
        for row in comparison["rows"]
    ]


def candidate_rows(candidates: Mapping[str, Any] | None, compared: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The ladder with fp32 first; `width` is a row's latency as a share of the slowest, for its bar."""
    if not candidates:
        return []
    timed = [row for row in candidates["rows"] if row["latency_ms"]]
    fp32 = {
        "name": "fp32",
        "status": "reference",
        "reason": "what the others are measured against",
        "metric": candidates["reference"],
    }
    fp32 |= {"latency_ms": timed[0]["fp32_latency_ms"] if timed else None, "speedup": 1.0 if timed else None}
    fp32 |= {"bytes": next((row["bytes"] for row in compared if row["name"] == "fp32"), None)}
    rows = [fp32, *candidates["rows"]]
    slowest = max((row["latency_ms"] or 0 for row in rows), default=0) or 1
    return [{**row, "width": (row["latency_ms"] or 0) / slowest} for row in rows]


def figure(chart: Chart, place: int) -> dict[str, Any]:
    """A chart as the template takes it; `place` tells its file from that of another whose title differs in signs only."""
    named = dataclasses.replace(chart, x=humane(chart.x), y=humane(chart.y))
    file = f"charts/{place}-{re.sub('[^a-z0-9]+', '-', chart.title.lower()).strip('-')}.png"
    return {"title": humane(chart.title), "kind": chart.kind, "svg": draw(named), "png": png(named), "file": file}


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Rows of dictionaries as columns and cells."""
    if not rows:
        return None
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "rows": [[row.get(name) for name in columns] for row in rows]}


def pictures(findings: Findings) -> dict[str, list[dict[str, Any]]]:
    """The gallery's pictures as data: URLs, by kind ("worst", "best")."""
    details = folder("evaluate", findings.workload) / "details"
    shown: dict[str, list[dict[str, Any]]] = {}
    for entry in findings.gallery or []:
        if (details / entry["file"]).is_file():
            shown.setdefault(entry["kind"], []).append({**entry, "url": data_url(details / entry["file"])})
    return shown


def told(findings: Findings) -> list[dict[str, Any]]:
    """What was said before training and after it, a row a record, with its picture as a data: URL."""
    details = folder("evaluate", findings.workload) / "details"
    rows = (findings.told or {}).get("rows", [])
    return [{**row, "url": data_url(details / row["file"], most=MAX_TOLD)} for row in rows]


def data_url(path: Path, *, most: int = MAX_PICTURE) -> str:
    """A picture no larger than it is shown, inside the page; one that moves as it is."""
    from PIL import Image

    if path.suffix == ".gif":
        return f"data:image/gif;base64,{base64.b64encode(path.read_bytes()).decode()}"

    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((most, most))
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        if buffer.tell() <= MAX_PNG or kind == "jpeg":
            return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    raise AssertionError("the last kind always returns")


def as_yaml(settings: Settings) -> str:
    """The settings in force, defaults included, as they would stand in params.yaml."""
    import yaml

    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def missing(findings: Findings) -> list[str]:
    """What could not be shown, and the stage that would have written it."""
    parts = {
        "comparison": ("the comparison of torch, fp32 and quantized", "quantize"),
        "candidates": ("the candidates of quantization", "quantize"),
        "parity": ("parity of the exported graphs", "export"),
        "metrics": ("the scores of the test split", "evaluate"),
        "gallery": ("example predictions", "evaluate"),
        "curves": ("training curves", "train"),
        "plan": ("the hardware plan", "plan"),
        "data": ("the data summary", "parse"),
        "quarantine": ("the quarantine", "parse"),
    }
    return [f"{what} (stage {stage})" for name, (what, stage) in parts.items() if getattr(findings, name) is None]


def html() -> jinja2.Environment:
    """Templates for HTML: every value is escaped, as class names and files may hold anything."""
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    made = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters.update(FILTERS)
    return made


def markdown() -> jinja2.Environment:
    """Templates for Markdown: every value is escaped against both Markdown and the HTML that Markdown may hold."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=markdown_text,
    )
    made.filters.update(FILTERS)
    return made


def markdown_text(value: Any) -> str:
    """A value as text that Markdown shows literally, on one line."""
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", re.sub(r"\s", " ", text))


def humane(name: str) -> str:
    """A measurement's name for people: `mask_map50_95` is "mask mAP50-95"."""
    name = name.replace("_", " ")
    for written, title in TITLES.items():
        name = re.sub(rf"\b{written}\b" if "^" not in written else rf"{written}(?!\w)", title, name)
    return name


def plainly(value: Any) -> str:
    """A nested value in one line of words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{humane(str(key))} {plainly(item)}" for key, item in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(plainly(item) for item in value[:MAX_LISTED]) + (" …" if len(value) > MAX_LISTED else "") or "none"
    return f"{value:.3g}" if isinstance(value, float) else number(value)


def number(value: Any) -> str:
    """A number in a cell: whole ones in full, others with 4 digits behind the point."""
    if value is None:
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if isinstance(value, int) or (value.is_integer() and abs(value) >= 2) else f"{value:.4f}"


def milliseconds(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.2f} s"


def size(value: float | None) -> str:
    """Bytes for people, in powers of 1000."""
    if value is None:
        return MISSING
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def share(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.3g}%"


def times(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}×"


def duration(seconds: float) -> str:
    from contracts.progress import clock

    return clock(seconds)


def words(text: str | None) -> str:
    """What was said; an empty answer can be seen."""
    return MISSING if text is None else text or "(nothing)"


FILTERS = {
    "plainly": plainly,
    "humane": humane,
    "number": number,
    "milliseconds": milliseconds,
    "size": size,
    "share": share,
    "times": times,
    "duration": duration,
    "words": words,
}


if __name__ == "__main__":
    stage_main(run)
