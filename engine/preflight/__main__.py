"""What runs in every rank: `python -m engine.preflight SPEC.json SECONDS`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from contracts.preflight import Estimate, Finding
from contracts.run import RunSpec
from engine.preflight import FINDINGS
from engine.worker import run_rank


def check_run(spec: RunSpec, shortest: float) -> None:
    """Make the checks; rank 0 writes what is found, line by line, into the run's folder."""
    from engine.preflight.checks import check

    def tell(found: Finding | Estimate) -> None:
        with (Path(spec.output) / FINDINGS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(found)) + "\n")

    check(spec, tell=tell, shortest=shortest)


if __name__ == "__main__":
    sys.exit(run_rank(sys.argv[1], partial(check_run, shortest=float(sys.argv[2]))))
