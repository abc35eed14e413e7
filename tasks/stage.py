"""What every stage shares: where its files lie, and how a command line starts it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from contracts.ending import leave
from contracts.errors import SlipwayError

# How often each record of train is drawn, where not all are drawn alike; in the folder of prepare.
SAMPLING_WEIGHTS = "sampling_weights.npy"


def folder(stage: str, workload: str) -> Path:
    """The folder under data/ that a stage writes for a workload."""
    return Path("data") / stage / workload


def stage_main(run: Callable[[str], None]) -> None:
    """Run a stage for the workload named on the command line, and end this process with `status_of` it."""
    leave(partial(status_of, run))


def status_of(run: Callable[[str], None]) -> int:
    """Run a stage for the workload named on the command line; of a SlipwayError the message alone is printed, and its status given."""
    arguments = sys.argv[1:]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(
            f"usage: python -m {run.__module__ if run.__module__ != '__main__' else 'tasks.<stage>'} WORKLOAD",
            file=sys.stderr,
        )
        return 2
    try:
        run(arguments[0])
    except SlipwayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    return 0
