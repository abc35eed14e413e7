"""What a measurement was made on, and where its numbers go."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.quantize import cpu
from contracts.files import write_json

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, *, bar: str, met: bool, load: float, **found: Any) -> None:
    """benchmarks/results/`name`.json, also printed; `load` is the machine's load average before the measurement."""
    path = RESULTS / f"{name}.json"
    command = f"python -m benchmarks.{name}"
    conditions = {"command": command, "cpu": cpu(), "cores": psutil.cpu_count(), "load_before": round(load, 2)}
    write_json(path, {**conditions, "bar": bar, "met": met, **found})
    print(path.read_text())


def load_now() -> float:
    """Processes that want a core, averaged over the last minute; nan where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}
