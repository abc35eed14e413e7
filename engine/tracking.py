"""What a run says about itself: one line of JSON after another, from which the curves are made."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from contracts.files import finite, replace_when_complete


class Journal:
    """metrics.jsonl of a run. Only rank 0 writes it; a resumed run first drops the lines that lie ahead of it."""

    def __init__(self, path: Path, *, resumed_at: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_journal(path) if line["step"] <= resumed_at]
        with replace_when_complete(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write(self, **values: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(values)) + "\n")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that was cut off is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def write_curves(journal: Path, target: Path) -> None:
    """metrics.jsonl as a table with a row a step that was logged, for `dvc plots` and the report."""
    rows: dict[int, dict[str, Any]] = {}
    for line in read_journal(journal):
        rows.setdefault(line["step"], {}).update(line)
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    _write_table(target, columns, [rows[step] for step in sorted(rows)])


def write_validation(journal: Path, target: Path, *, metric: str) -> None:
    """The workload's metric as a table with a row a validation, for `dvc plots`.

    curves.csv holds it too, but a line through mostly empty cells is no line. `dvc plots` draws the last column where it is told
    none, and names the axis after it, so that dvc.yaml need not know what a workload's metric is called.
    """
    rows = [line for line in read_journal(journal) if metric in line]
    _write_table(target, ["step", "epoch", metric], rows)


def _write_table(target: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with replace_when_complete(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
