"""What a measurement was made on, and where its numbers go."""

from __future__ import annotations

import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import psutil

from benchmarks.quantize import cpu
from contracts.files import write_json
from tasks.lineage import git_state

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, *, bar: str, met: bool, load: float, **found: Any) -> None:
    """benchmarks/results/`name`.json, also printed; `load` is the machine's load average before the measurement."""
    path = RESULTS / f"{name}.json"
    here = {"cpu": cpu(), "cores": psutil.cpu_count(), "load_before": round(load, 2)}
    when = {"date": date.today().isoformat(), "git": git_state()}
    write_json(path, {"command": command(name), **when, **here, "bar": bar, "met": met, **found})
    print(path.read_text())


def command(name: str) -> str:
    """The command line that this process was started with; of a folder that is named in full, the last part."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", "-m", f"benchmarks.{name}", *words])


def load_now() -> float:
    """Processes that want a core, averaged over the last minute; nan where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}
