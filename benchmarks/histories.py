"""Tens of millions of steps of learning histories: `python -m benchmarks.histories` writes results/histories.json.

Collected and parsed by the stages, in a project of its own, and then read in random order as training does: as many histories as the
settings as shipped have, and eight times as many. For each stage: seconds by the clock, the most memory that was resident, which counts
the pages of mapped files too, and how much of it was its own, which the system cannot take away.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from benchmarks.conditions import load_now, write_result
from contracts.files import read_json
from contracts.records import Records
from contracts.workload import ROOT, load
from workloads.algorithm_distillation.environments import ENVIRONMENTS
from workloads.algorithm_distillation.settings import DistillationSettings

NAME = "algorithm_distillation"
STAGES = ("download", "parse", "prepare")
TIMES, LEAST_STEPS, MOST_BYTES = 8, 20e6, 2**30
BATCH, NUM_BATCHES = 8, 1000
EVERY = 0.02  # seconds between two looks at the memory
BAR = f"at least {LEAST_STEPS / 1e6:g} million steps, 4 bytes each on disk (and a byte in five for shapes and rows), at most 1 GiB resident"


def main() -> None:
    rows = []
    before = load_now()
    for times in (1, TIMES):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(Path(folder), DistillationSettings().download.num_samples * times))
    most = rows[-1]
    peak = max(stage["peak_bytes"] for stage in most["stages"].values())
    met = most["steps"] >= LEAST_STEPS and most["bytes"] <= 4.8 * most["steps"] and peak <= MOST_BYTES
    write_result("histories", bar=BAR, met=met, load=before, rows=rows)


def measured(project: Path, num: int) -> dict[str, Any]:
    """The stages for so many histories, and reading them."""
    (project / "params.yaml").write_text(yaml.safe_dump({NAME: {"download": {"num_samples": num}}}), encoding="utf-8")
    stages = {stage: used([sys.executable, "-m", f"tasks.{stage}", NAME], project) for stage in STAGES}
    stages["read"] = used([sys.executable, "-c", "from benchmarks.histories import read; read()"], project)
    raw, parsed = project / "data" / "download" / NAME / "raw", project / "data" / "parse" / NAME
    settings = DistillationSettings().download
    steps = num * settings.episodes * ENVIRONMENTS[settings.environment].horizon
    sizes = {"bytes": size_of(raw), "bytes_of_records": size_of(parsed)}
    return {"histories": num, "steps": steps, **sizes, "read_histories": BATCH * NUM_BATCHES, "stages": stages}


def used(command: Sequence[str], folder: Path) -> dict[str, float]:
    """The time of a command, and the most memory that it held at once."""
    began = time.perf_counter()
    resident = own = 0
    with psutil.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            memory = process.memory_info()
            resident, own = max(resident, memory.rss), max(own, memory.rss - memory.shared)
            time.sleep(EVERY)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return {"seconds": time.perf_counter() - began, "peak_bytes": resident, "peak_bytes_of_its_own": own}


def read() -> None:
    """Batches in random order, as the training of the project in the current folder draws them."""
    workload, parsed = load(NAME), Path("data", "parse", NAME)
    records = Records.open(parsed, root=Path("data", "download", NAME, "raw")).split("train")
    dataset = workload.dataset(records, DistillationSettings(), read_json(parsed / "facts.json"), training=True)
    for rows in np.random.default_rng(0).integers(len(records), size=(NUM_BATCHES, BATCH)).tolist():
        dataset.collate([dataset.item(row, None, draw=0, progress=0) for row in rows])


def size_of(folder: Path) -> int:
    """The bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
