"""`slipway preflight`: looks for what would spoil a training, before it; one line a check, with cause and remedy."""

from __future__ import annotations

import time
from typing import Annotated

import typer


def preflight(
    workload: Annotated[str, typer.Argument(help="Which workload; its stages download and parse must have run.")],
) -> None:
    """Check the training of a workload as params.yaml sets it. Exit status 1 when a check failed."""
    from tasks.preflight import preflight as check
    from tasks.preflight import spec_of, summary

    began = time.monotonic()
    spec, settings = spec_of(workload)
    report = check(spec, settings, tell=lambda found: print(found.line(), flush=True))
    print(f"\n{summary(report)}; checked in {time.monotonic() - began:.0f} s")
    if report.failed:
        raise typer.Exit(1)
