"""How long a preflight takes: `python -m benchmarks.preflight` writes benchmarks/results/preflight.json.

`slipway preflight` of every workload as params.yaml has it, on its embedded data, in a process of its own, in turns: its start, its
ranks and its export are in the time. The stages before it run once, and do not count; with `--project` they are those of a project
in which they have run. A check that fails is an error.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.conditions import load_now, spread, write_result
from contracts.workload import ROOT, names

BAR = 60.0
BEFORE = ("download", "parse", "prepare", "plan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workloads", nargs="+", choices=names(), default=list(names()))
    parser.add_argument("--project", type=Path, default=None)
    options = parser.parse_args()
    load = load_now()
    with tempfile.TemporaryDirectory() as folder:
        place = options.project or made(Path(folder), options.workloads)
        turns = [{workload: seconds(place, workload) for workload in options.workloads} for _ in range(options.turns)]
    found = {workload: spread([turn[workload] for turn in turns]) for workload in options.workloads}
    longest = max(one["median"] for one in found.values())
    write_result("preflight", bar=f"<= {BAR:.0f} s each", met=longest <= BAR, load=load, turns=options.turns, seconds=found)


def made(place: Path, workloads: Sequence[str]) -> Path:
    """A project in that folder, ready to train."""
    shutil.copy(ROOT / "params.yaml", place)
    for workload in workloads:
        for stage in BEFORE:
            run(place, "-m", f"tasks.{stage}", workload)
    return place


def seconds(place: Path, workload: str) -> float:
    """The time that a preflight takes, from the command to its last line."""
    began = time.monotonic()
    run(place, "-c", "from cli.main import app; app()", "preflight", workload)
    took = time.monotonic() - began
    print(f"{workload}: {took:.1f} s", flush=True)
    return took


def run(place: Path, *words: str) -> None:
    """Run Python in a project's folder.

    Raises:
        RuntimeError: with what it said, when it ended with an error.
    """
    command: Sequence[str] = [sys.executable, *words]
    done = subprocess.run(command, cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
