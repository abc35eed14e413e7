"""What a pipeline ends with: its metrics and its report, as Prefect artifacts and as a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from contracts.files import read_json
from flows.graph import Stage
from flows.progress_artifact import artifact_key
from tasks.stage import folder


def show_artifacts(workload: str, stages: Sequence[Stage]) -> None:
    """Table artifacts of the metrics and of what ships, and the report as a markdown artifact, as far as the files are there."""
    if metrics := metric_rows(stages):
        create_table_artifact(metrics, key=artifact_key("metrics", workload), description=f"Metrics of {workload}")
    if shipped := comparison_rows(workload):
        create_table_artifact(shipped, key=artifact_key("comparison", workload), description=f"What ships of {workload}")
    report = folder("report", workload) / "report.md"
    if report.is_file():
        create_markdown_artifact(report.read_text(encoding="utf-8"), key=artifact_key("report", workload))


def metric_rows(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Stage, name and value of every number in the files that dvc.yaml calls metrics."""
    return [
        {"stage": stage.name, "metric": name, "value": value}
        for stage in stages
        for file in stage.metrics
        if Path(file).is_file()
        for name, value in _numbers(read_json(Path(file)), ())
    ]


def _numbers(value: Any, path: tuple[str, ...]) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in _numbers(item, (*path, str(key)))]
    return [(".".join(path), value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def comparison_rows(workload: str) -> list[dict[str, Any]]:
    """Name, metric, size and latency of the torch model, the fp32 file and the file that ships."""
    path = folder("quantize", workload) / "comparison.json"
    if not path.is_file():
        return []
    comparison = read_json(path)
    return [
        {
            "model": row["name"] + (" (ships)" if row["name"] == comparison["chosen"] else ""),
            comparison["metric"]: _figure(row["metric"], "{:.4f}"),
            "size (MB)": _figure(row["bytes"], "{:.2f}", 1e-6),
            "latency (ms)": _figure(row["latency_ms"], "{:.2f}"),
        }
        for row in comparison["rows"]
    ]


def _figure(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else form.format(value * unit)


def publishing(workload: str) -> str | None:
    """In a line, whether the model was published and why not: a pipeline that ran to its end need not have."""
    path = folder("publish", workload) / "receipt.json"
    if not path.is_file():
        return None
    receipt = read_json(path)
    if receipt["published"]:
        return f"published: {receipt['version']} at {receipt['location'] or receipt['target']}"
    return f"NOT published: {receipt['reason']}"


def print_results(workload: str) -> None:
    """The table of what ships, whether it was published, and where the report lies."""
    from rich.console import Console
    from rich.table import Table

    if rows := comparison_rows(workload):
        table = Table(title=f"{workload}, on the test split")
        for name in rows[0]:
            table.add_column(name, justify="left" if name == "model" else "right")
        for row in rows:
            table.add_row(*row.values())
        Console().print(table)
    if published := publishing(workload):
        print(published)
    report = folder("report", workload) / "report.html"
    if report.is_file():
        print(f"report: {report.resolve()}")
