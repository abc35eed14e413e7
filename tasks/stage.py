"""What every stage shares: where its files lie, and how a command line starts it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from contracts.errors import SlipwayError

# How often each record of train is drawn, where not all are drawn alike; in the folder of prepare.
SAMPLING_WEIGHTS = "sampling_weights.npy"


def folder(stage: str, workload: str) -> Path:
    """The folder under data/ that a stage writes for a workload."""
    return Path("data") / stage / workload


def stage_main(run: Callable[[str], None]) -> None:
    """Run a stage for the workload named on the command line; a SlipwayError is printed alone and ends with its status."""
    arguments = sys.argv[1:]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(
            f"usage: python -m {run.__module__ if run.__module__ != '__main__' else 'tasks.<stage>'} WORKLOAD",
            file=sys.stderr,
        )
        raise SystemExit(2)
    try:
        run(arguments[0])
    except SlipwayError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.status) from None
