"""Ranks of the tiny workload start fast because they load no model library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from contracts.run import RunResult, RunSpec
from contracts.workload import ROOT

UNWANTED = {"torchvision", "ultralytics", "transformers", "pandas"}
# A rank in one process, which prints what it has loaded when it has trained.
PROGRAM = """
import sys
from tests.engine import tiny_ranks
try:
    tiny_ranks.main("engine.worker", sys.argv[1])
finally:
    print(*{name.partition(".")[0] for name in sys.modules})
"""


@pytest.mark.slow
def test_a_rank_of_the_tiny_workload_trains_without_any_model_library(make_tiny_spec: Callable[..., RunSpec]) -> None:
    spec = make_tiny_spec()
    output = Path(spec.output)
    output.mkdir()
    spec.write(output / "spec.json")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(output / "spec.json")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert RunResult.read(output / "result.json").metrics["accuracy"] > 0
    assert not set(done.stdout.splitlines()[-1].split()) & UNWANTED
