"""What the stages left in their folders, gathered for the report. A part that is missing is None: the report says so."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.files import read_json
from contracts.workload import Chart
from tasks.lineage import git_state, locked_stages
from tasks.stage import folder

MAX_QUARANTINE_ROWS, MAX_REASONS = 8, 12
# Stages that come after this one, whose hashes in dvc.lock would be those of the run before.
LATER_STAGES = ("report", "publish")
# What stands beside the loss and its parts in a line of metrics.jsonl, by name and by how a name begins.
NO_LOSS = (
    *("step", "epoch", "learning_rate", "samples_per_second", "gradient_norm", "step_seconds", "data_wait_share"),
    *("weight", "seconds"),
)
NO_PART = ("num_", "val_", "device_")


@dataclass(frozen=True)
class Findings:
    """The content of the stages' files, as they wrote it."""

    workload: str
    comparison: dict[str, Any] | None
    candidates: dict[str, Any] | None
    parity: dict[str, Any] | None
    artifact: dict[str, Any] | None
    metrics: dict[str, Any] | None
    scores: dict[str, Any] | None
    gallery: list[dict[str, Any]] | None
    told: dict[str, Any] | None
    training: dict[str, Any] | None
    curves: list[dict[str, float]] | None
    plan: dict[str, Any] | None
    plan_report: str | None
    data: dict[str, Any] | None
    quarantine: dict[str, Any] | None
    lineage: dict[str, Any]

    @classmethod
    def gather(cls, workload: str) -> Findings:
        """Read what is there for a workload."""

        def found(stage: str, name: str) -> Any:
            path = folder(stage, workload) / name
            return read_json(path) if path.is_file() else None

        text = folder("plan", workload) / "report.txt"
        return cls(
            workload=workload,
            comparison=found("quantize", "comparison.json"),
            candidates=found("quantize", "candidates.json"),
            parity=found("export", "parity.json"),
            artifact=found("quantize", "artifact.json") or found("export", "artifact.json"),
            metrics=found("evaluate", "metrics.json"),
            scores=found("evaluate", "details/scores.json"),
            gallery=found("evaluate", "details/gallery.json"),
            told=found("evaluate", "details/told.json"),
            training=found("train", "result.json"),
            curves=read_curves(folder("train", workload) / "curves.csv"),
            plan=found("train", "plan.json") or found("plan", "plan.json"),
            plan_report=text.read_text(encoding="utf-8") if text.is_file() else None,
            data=found("parse", "summary.json"),
            quarantine=read_quarantine(folder("parse", workload) / "quarantine.csv"),
            lineage=lineage(workload),
        )


def read_curves(path: Path) -> list[dict[str, float]] | None:
    """The rows of train's curves.csv, without the cells that are empty."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if name and value} for row in csv.DictReader(file)]


def training_charts(curves: Sequence[Mapping[str, float]], metric: str, metrics: Sequence[str]) -> list[Chart]:
    """The loss, its parts, the metric on val, the learning rate and the gradient's norm, over epochs."""
    columns = list(dict.fromkeys(name for row in curves for name in row))
    parts = [name for name in columns if name not in (*NO_LOSS, "loss", *metrics) and not name.startswith(NO_PART)]

    def lines(names: Sequence[str]) -> dict[str, tuple[list[float], list[float]]]:
        rows = {name: [row for row in curves if name in row] for name in names}
        return {
            name: ([row.get("epoch", row.get("step", 0.0)) for row in found], [row[name] for row in found])
            for name, found in rows.items()
            if found
        }

    wanted = [
        ("Training loss", "loss", ["loss"]),
        ("Parts of the loss", "loss", parts),
        (f"{metric} on the val split", metric, [metric]),
        ("Learning rate", "learning rate", ["learning_rate"]),
        ("Norm of the gradient", "norm", ["gradient_norm"]),
    ]
    charts = [Chart(title, "lines", "epoch", y, lines(names)) for title, y, names in wanted]
    return [chart for chart in charts if chart.lines]


def read_quarantine(path: Path) -> dict[str, Any] | None:
    """How many rows of quarantine.csv there are for each reason, and the first of them."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        first = list(itertools.islice(rows, MAX_QUARANTINE_ROWS))
        reasons = Counter(kind_of(row.get("reason") or "") for row in itertools.chain(first, rows))
    return {"total": reasons.total(), "reasons": reasons.most_common(MAX_REASONS), "rows": first}


def kind_of(reason: str) -> str:
    """A reason without what is particular to the row, so that equal ones are counted together."""
    return "".join("#" if letter.isdigit() else letter for letter in reason.split(":")[0])[:120]


def lineage(workload: str) -> dict[str, Any]:
    """The revision of the code, and what came out of each stage before the report."""
    before = {name: one for name, one in locked_stages(workload).items() if name.partition("@")[0] not in LATER_STAGES}
    return {"git": git_state(), "stages": before}
