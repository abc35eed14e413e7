"""Ranks that know the tiny workload: `python -m tests.engine.tiny_ranks MODULE SPEC.json...`, alone or under torchrun.

They are MODULE, as which a launcher starts its ranks. A model library that they do not need would take a third of their start.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import workloads
from contracts import workload
from contracts.plan import Plan
from engine import launch

HOUSE = Path(__file__).parent / "house"
plain_command = launch.command


def command(plan: Plan, spec: Path, *, module: str = "engine.worker") -> list[str]:
    """As `engine.launch.command`; the ranks know the tiny workload."""
    *start, path = plain_command(plan, spec, module="tests.engine.tiny_ranks")
    return [*start, module, path]


def join_the_house(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let this process, and all ranks that it launches, find the tiny workload beside those under workloads/."""
    there = workload.names
    put(workloads, "__path__", [*workloads.__path__, str(HOUSE)])
    put(workload, "names", lambda: sorted([*there(), *(path.stem for path in HOUSE.glob("*.py"))]))
    put(launch, "command", command)


def main(module: str, *words: str) -> None:
    """Be `module`, started with these words."""
    join_the_house()
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
