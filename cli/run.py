"""`slipway run`: the whole pipeline of a workload, through the Prefect flow."""

from __future__ import annotations

from typing import Annotated

import typer


def run(
    workload: Annotated[str | None, typer.Argument(help="Which workload; the first in params.yaml if not given.")] = None,
    force: Annotated[list[str] | None, typer.Option(help="Run this stage even if nothing changed; may be repeated.")] = None,
) -> None:
    """Run a workload's whole pipeline; what has not changed is skipped."""
    from cli.use import enlist

    if workload:
        enlist(workload)
    from flows.train_pipeline import run_flow

    run_flow(workload, force=force or [])
