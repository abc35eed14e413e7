"""Which flow runs this project has open, on disk, so that the next one can close what a killed process left Running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from filelock import FileLock, Timeout
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from contracts.files import read_json, remove, write_json

FOLDER = Path(".slipway") / "flows"


@contextmanager
def open_run(run: UUID) -> Iterator[None]:
    """Keeps a note of a flow run while it lasts. A process that is killed leaves its note behind."""
    me = psutil.Process()
    note = FOLDER / f"{run}.json"
    write_json(note, {"run": str(run), "process": me.pid, "started": me.create_time()})
    try:
        yield
    finally:
        remove(note)


def close_abandoned_runs() -> list[UUID]:
    """Set to Crashed what the server still takes for running although its process is gone; returns those."""
    closed = []
    for note in sorted(FOLDER.glob("*.json")):
        with suppress(FileNotFoundError):
            content = read_json(note)
            if not _lives(content["process"], content["started"]):
                if _close(UUID(content["run"])):
                    closed.append(UUID(content["run"]))
                remove(note)
    return closed


def _lives(process: int, started: float) -> bool:
    try:
        return abs(psutil.Process(process).create_time() - started) < 1
    except psutil.Error:
        return False


def _close(run: UUID) -> bool:
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(run).state
        except ObjectNotFound:  # it ran against another server
            return False
        if state is None or state.is_final():
            return False
        gone = Crashed(message="Its process was killed.")
        client.set_flow_run_state(run, gone, force=True)
        for task in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run]))):
            if task.state is None or not task.state.is_final():
                client.set_task_run_state(task.id, gone, force=True)
        return True


@contextmanager
def alone(workload: str, *, log: Any) -> Iterator[None]:
    """One pipeline a workload at a time: a second one waits. The lock is the operating system's, so the dead hold none."""
    path = FOLDER / f"{workload}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another run of %s holds %s: waiting until it ends", workload, path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
