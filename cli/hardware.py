"""`slipway hardware`: what the machine has, and how each workload's training would be laid out on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from contracts.errors import SlipwayError
from contracts.files import finite
from contracts.plan import Plan, as_dict
from contracts.settings import read_params
from contracts.workload import names, settings_of
from engine.hardware import detect
from engine.planning import look_around, plan
from tasks.plan import report


def hardware(
    workload: Annotated[str | None, typer.Argument(help="Only this workload's plan; otherwise all of params.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the report.")] = False,
) -> None:
    """Show this machine's hardware and the training plan it gets, with a reason for every choice."""
    found = detect()
    if workload is None and Path("params.yaml").is_file():
        params = read_params()
        chosen = [name for name in names() if name in params]
    else:
        chosen = [workload] if workload else []
    plans: dict[str, Plan | SlipwayError] = {}
    for name in chosen:
        try:
            wanted = settings_of(name)
            plans[name] = plan(found, wanted.train, wanted.plan, installed=look_around(found))
        except SlipwayError as error:
            plans[name] = error
    if as_json:
        shown = {name: {"error": str(one)} if isinstance(one, SlipwayError) else as_dict(one) for name, one in plans.items()}
        print(json.dumps(finite({"hardware": as_dict(found), "plans": shown}), indent=2, ensure_ascii=False))
    else:
        print(report(found, plans), end="")
    if workload and isinstance(plans[workload], SlipwayError):
        raise typer.Exit(1)
