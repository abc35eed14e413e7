"""The flow `train-pipeline`: every stage of a workload in the order of dvc.yaml, each a Prefect task.

`python -m flows.train_pipeline [WORKLOAD]` runs it, with no server running beforehand; so does `slipway run`.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import get_run_context
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from contracts.errors import SlipwayError
from flows.graph import Stage, read_graph
from flows.open_runs import alone, close_abandoned_runs, open_run
from flows.results import print_results, show_artifacts
from flows.server import need_server
from flows.stage import stage_task
from flows.unheard import go_on_unheard

OUTCOMES = {"Unchanged": "unchanged", "Restored": "restored", "Completed": "ran"}


@flow(name="train-pipeline", persist_result=False)
def train_pipeline(workload: str | None = None, force: list[str] | None = None) -> Any:
    """From raw data to a published model.

    Args:
        workload: which one of those that params.yaml lists under `workloads`; the first of them if not given.
        force: stages to run even where nothing changed, by name: ["train"].
    """
    return run_pipeline(workload, lambda stages: force or [])


def run_pipeline(workload: str | None, forced: Callable[[Sequence[Stage]], Sequence[str]]) -> Any:
    """Run the stages of a workload one after the other within the present flow run; how that ended."""
    log = get_run_logger()
    go_on_unheard()
    try:
        workload, stages = read_graph(workload)
        force = _known(forced(stages), stages)
    except SlipwayError as error:
        return Failed(message=str(error))
    for run in close_abandoned_runs():
        log.info("flow run %s was left running by a process that was killed: set to Crashed", run)
    with open_run(get_run_context().flow_run.id), alone(workload, log=log):  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        states: dict[str, State[Any]] = {}
        for stage in stages:
            start = time.monotonic()
            upstream = [states[name] for name in stage.before]
            state = stage_task(stage)(stage, force=stage.name in force, wait_for=upstream, return_state=True)
            if not state.is_completed():
                return Failed(message=state.message or f"{stage.address} did not complete", data=_failure(state))
            states[stage.name] = state
            log.info("%-12s %-9s %8.1f s", stage.name, OUTCOMES[state.name or "Completed"], time.monotonic() - start)
        show_artifacts(workload, stages)
    return Completed(message=f"{len(stages)} stages of {workload}")


def _failure(state: State[Any]) -> Any:
    """What a state that is not completed was caused by, where it was an error."""
    return state.result(raise_on_failure=False) if state.is_failed() else None


def _known(names: Sequence[str], stages: Sequence[Stage]) -> set[str]:
    if unknown := sorted(set(names) - {stage.name for stage in stages}):
        raise SlipwayError(f"no such stage: {', '.join(unknown)}; there are {', '.join(stage.name for stage in stages)}")
    return set(names)


def run_flow(workload: str | None = None, *, force: Sequence[str] = ()) -> None:
    """Run the pipeline from a terminal and print what came of it; starts a Prefect server where the user has none.

    Raises:
        SlipwayError: with the last lines of the stage that failed, and its status.
    """
    signal.signal(signal.SIGTERM, _end)
    workload, stages = read_graph(workload)
    _known(force, stages)
    need_server()
    state: State[Any] = train_pipeline(workload, list(force), return_state=True)
    if not state.is_completed():
        error, failure = SlipwayError(state.message or "the pipeline did not complete"), _failure(state)
        error.status = failure.status if isinstance(failure, SlipwayError) else SlipwayError.status
        raise error
    print_results(workload)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """So that SIGTERM unwinds the stack, as Ctrl-C does, and what was started is ended on the way."""
    raise SystemExit(128 + number)


def main(arguments: Sequence[str]) -> int:
    """The exit status of `python -m flows.train_pipeline [WORKLOAD]`."""
    if len(arguments) > 1 or (arguments[:1] and arguments[0].startswith("-")):
        print("usage: python -m flows.train_pipeline [WORKLOAD]", file=sys.stderr)
        return 2
    try:
        run_flow(*arguments)
    except SlipwayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("stopped: the next run goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
