"""One stage as one Prefect task: `dvc repro` under a guard, its lines as the task's log, its progress as an artifact."""

from __future__ import annotations

import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.states import Completed

from contracts.errors import SlipwayError
from flows.graph import Stage, unchanged
from flows.guarded import guarded
from flows.progress_artifact import ProgressArtifact

LOG_SECONDS, POLL_SECONDS = 1.0, 0.2
TAIL, LONGEST_LOG = 20, 200
# What DVC advises after each stage; the flow's user is told once, in the README.
ADVICE = re.compile(
    r"^(To track the changes with git|\s+git add |To enable auto staging|\s+dvc config |Use `dvc push`|Updating lock file)"
)


# How DVC tells what a stage's own command ended with; its own status says only that one has failed.
OWN_STATUS = re.compile(r"failed to run: .*, exited with (\d+)$")


class StageFailed(SlipwayError):
    """A stage ended with an error. `refused` tells that the stage itself said why: trying again would say the same. `status` is what
    its command ended with, where it ended by itself (75: interrupted, 76: hung)."""

    def __init__(self, address: str, status: int, tail: list[str]) -> None:
        found = [match for line in tail if (match := OWN_STATUS.search(line))]
        if found and (own := int(found[-1][1])):
            self.status = status = own
        said = [place for place, line in enumerate(tail) if line.startswith("error: ")]
        self.refused = bool(said)
        lines = tail[said[0] :] if said else tail
        super().__init__(f"{address} failed (status {status}); its last lines:\n" + "\n".join(f"  {line}" for line in lines))


def stage_task(stage: Stage) -> Task[..., Any]:
    """The Prefect task that runs `stage`, with the retries and the time limit that its meta in dvc.yaml gives it."""
    return run_stage.with_options(
        name=stage.name,
        task_run_name=stage.address,
        retries=stage.retries,
        retry_delay_seconds=10,
        retry_condition_fn=_worth_trying_again,
        timeout_seconds=stage.timeout_seconds,
    )


def _worth_trying_again(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    failure = state.result(raise_on_failure=False)
    return not (isinstance(failure, StageFailed) and failure.refused)


@task(cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: Stage, *, force: bool = False) -> State[Any]:
    """Run a stage if DVC says that it changed; Completed, named "Unchanged" where there was nothing to do and "Restored"
    where DVC had the outputs of the same inputs in its cache.

    Raises:
        StageFailed: with the last lines that the stage wrote.
    """
    log = get_run_logger()
    if not force and unchanged(stage.address):
        log.info("%s did not change: nothing to do", stage.address)
        return Completed(name="Unchanged", message="nothing that it depends on has changed")
    restored = reproduce(stage.address, force=force, log=log)
    return Completed(name="Restored", message="taken from DVC's cache") if restored else Completed(message="ran")


def reproduce(address: str, *, force: bool, log: Any) -> bool:
    """`dvc repro` of one stage in a process of its own; True where DVC took its outputs from the cache."""
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "-s", address, *(["--force"] if force else [])]
    with tempfile.TemporaryDirectory(prefix="slipway-") as folder:
        progress = ProgressArtifact(Path(folder) / "progress.jsonl", key=address)
        environment = {"SLIPWAY_PROGRESS": str(progress.path), "PYTHONUNBUFFERED": "1"}
        with guarded(command, environment=environment, output=subprocess.PIPE) as process:
            tail, restored = _follow(process, progress, log)
            status = process.wait()
        progress.finish()
    if status:
        raise StageFailed(address, status, tail)
    return restored


def _follow(process: subprocess.Popen[bytes], progress: ProgressArtifact, log: Any) -> tuple[list[str], bool]:
    """Log a stage's lines, at most one record a second, until it ends; its last lines, and whether it was restored."""
    assert process.stdout is not None
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    waiting: list[str] = []
    tail: deque[str] = deque(maxlen=TAIL)
    logged, restored, line = 0.0, False, ""
    while line is not None:
        try:
            line = lines.get(timeout=POLL_SECONDS)
        except queue.Empty:
            line = ""
        if line and not ADVICE.match(line):
            waiting.append(line)
            tail.append(line)
            restored = restored or line.endswith("is cached - skipping run, checking out outputs")
        if waiting and (line is None or time.monotonic() - logged >= LOG_SECONDS):
            log.info("%s", "\n".join(_shortened(waiting)))
            waiting, logged = [], time.monotonic()
        progress.update()
    return list(tail), restored


def _read(stream: IO[bytes], lines: queue.SimpleQueue[str | None]) -> None:
    """Each line without what a progress bar drew over (everything before the last carriage return)."""
    try:
        for raw in stream:
            lines.put(raw.decode("utf-8", "replace").rstrip().rpartition("\r")[2])
    except ValueError:
        pass  # closed while the stage was being ended
    lines.put(None)


def _shortened(lines: list[str]) -> list[str]:
    if len(lines) <= LONGEST_LOG:
        return lines
    half = LONGEST_LOG // 2
    return [*lines[:half], f"... {len(lines) - 2 * half:,} lines left out ...", *lines[-half:]]
