"""`slipway plan`: how a workload's training is laid out on this machine, and why; on request by measurement."""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.plan import run


def plan(
    workload: Annotated[str, typer.Argument(help="The workload whose training is planned.")],
    measure: Annotated[bool, typer.Option("--measure", help="Time backends and precisions, and take the fastest.")] = False,
    anew: Annotated[bool, typer.Option("--anew", help="Measure again what was measured before.")] = False,
) -> None:
    """Show a workload's training plan with its reasons, or measure it. The next training takes it."""
    run(workload, measure=measure, anew=anew)
