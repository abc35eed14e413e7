"""Deployed flows against a real Prefect server with a process worker: what a user sees there, and what ends when."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, FlowRun, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests.flows.tiny_project import PARAMS, Served, dvc, hire, python, until
from tests.flows.tiny_project import run as run_command
from tests.readme import readme_command

pytestmark = pytest.mark.slow


@pytest.fixture
def client(served: Served) -> Iterator[SyncPrefectClient]:
    (served.folder / "params.yaml").write_text(PARAMS)
    with temporary_settings({PREFECT_API_URL: served.url}), get_client(sync_client=True) as client:
        yield client


def submit(client: SyncPrefectClient, deployment: str = "train-pipeline/train-pipeline") -> UUID:
    """A run of a deployment, for the worker."""
    found = client.read_deployment_by_name(deployment)
    return client.create_flow_run_from_deployment(found.id, parameters={"workload": "tiny"}).id


def settings(served: Served, fit: str) -> None:
    (served.folder / "params.yaml").write_text(PARAMS.replace("{steps: 2, seconds: 0.01}", fit))


def ended(client: SyncPrefectClient, run: UUID) -> FlowRun:
    def final() -> bool:
        state = client.read_flow_run(run).state
        return state is not None and state.is_final()

    until(final, seconds=120, what="the flow run did not end")
    return client.read_flow_run(run)


def tasks(client: SyncPrefectClient, run: UUID) -> dict[str, str]:
    """Name of the state of each task, by the task's own name."""
    runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
    return {task.name: task.state.name or "" for task in runs if task.state}


def attempts(client: SyncPrefectClient, run: UUID) -> int:
    """How often `fit` was tried."""
    runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
    return next(task.run_count for task in runs if task.name == "fit@tiny")


def logs(client: SyncPrefectClient, run: UUID) -> str:
    return "\n".join(one.message for one in client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))))


def artifacts(client: SyncPrefectClient, run: UUID) -> dict[str, Artifact]:
    found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run])))
    return {one.key: one for one in found if one.key}


def test_a_deployed_run_shows_its_tasks_logs_and_artifacts_and_a_second_one_does_nothing(
    served: Served, client: SyncPrefectClient
) -> None:
    settings(served, "{steps: 12, seconds: 0.5}")
    started = readme_command(".venv/bin/prefect deployment run train-pipeline/train-pipeline")
    run_command(started, served.folder, served.variables)
    run = client.read_flow_runs()[0].id
    seen: set[object] = set()

    def look() -> bool:
        if progress := artifacts(client, run).get("progress-fit-tiny"):
            seen.add(progress.data)
        state = client.read_flow_run(run).state
        return state is not None and state.is_final()

    until(look, seconds=120)
    flow_run = client.read_flow_run(run)
    assert flow_run.state is not None and flow_run.state.is_completed(), flow_run.state
    assert tasks(client, run) == dict.fromkeys(["fetch@tiny", "layout@tiny", "fit@tiny", "quantize@tiny"], "Completed")
    assert len(seen) >= 3 and 100.0 in seen, f"the progress artifact did not move: {seen}"
    until(lambda: "step 12 of the fit" in logs(client, run), seconds=20)
    found = artifacts(client, run)
    assert found["progress-fit-tiny"].description == "fitting, loss 0.08"
    assert '"accuracy"' in str(found["metrics-tiny"].data) and "seconds.total" in str(found["metrics-tiny"].data)
    assert "int8 (ships)" in str(found["comparison-tiny"].data)
    assert found["report-tiny"].data == "# Report of tiny"
    assert "didn't change" in dvc(served.folder, served.variables, "repro", "quantize@tiny")

    again = submit(client)
    state = ended(client, again).state
    assert state is not None and state.is_completed()
    assert set(tasks(client, again).values()) == {"Unchanged"}


def test_cancelling_a_run_ends_every_process_of_its_training(served: Served, client: SyncPrefectClient) -> None:
    settings(served, "{steps: 600, seconds: 1}")
    pid_file = served.folder / "rank.pid"
    pid_file.unlink(missing_ok=True)
    run = submit(client)
    until(lambda: pid_file.exists() and pid_file.read_text(), seconds=60)
    rank = psutil.Process(int(pid_file.read_text()))
    chain = rank.parents()
    below_guard = chain[: next(place for place, one in enumerate(chain) if "guard.py" in " ".join(one.cmdline())) + 1]
    python(served.folder, served.variables, "-m", "prefect", "--no-prompt", "flow-run", "cancel", str(run))
    state = ended(client, run).state
    assert state is not None and state.type is StateType.CANCELLED
    until(lambda: not any(one.is_running() for one in [rank, *below_guard]), seconds=30, what="processes outlived the run")


def test_a_stage_that_fails_is_a_failed_run_with_its_last_lines(served: Served, client: SyncPrefectClient) -> None:
    settings(served, "{steps: 1, seconds: 0.01, fails: 76}")
    flow_run = ended(client, submit(client))
    assert flow_run.state is not None and flow_run.state.is_failed()
    assert "error: params.yaml: fit.fails is set; remove it" in (flow_run.state.message or "")
    states = tasks(client, flow_run.id)
    assert states["fit@tiny"] == "Failed" and "quantize@tiny" not in states
    assert attempts(client, flow_run.id) == 1, "what a stage itself refuses was tried again"
    slipway, *_ = readme_command(".venv/bin/slipway run segmentation")
    said = run_command([slipway, "run"], served.folder, served.variables, status=76)
    assert "error: params.yaml: fit.fails is set; remove it" in said


def test_a_stage_that_crashes_is_tried_again(served: Served, client: SyncPrefectClient) -> None:
    settings(served, "{steps: 1, seconds: 0.02, crashes_once: true}")
    flow_run = ended(client, submit(client))
    assert flow_run.state is not None and flow_run.state.is_completed(), flow_run.state
    assert attempts(client, flow_run.id) == 2


def test_a_stage_that_takes_too_long_is_ended_with_everything_it_started(served: Served, client: SyncPrefectClient) -> None:
    pipeline = served.folder / "dvc.yaml"
    text = pipeline.read_text()
    pipeline.write_text(text.replace("retries: 1, timeout_minutes: 5", "retries: 0, timeout_minutes: 0.15"))
    settings(served, "{steps: 600, seconds: 1}")
    pid_file = served.folder / "rank.pid"
    pid_file.unlink(missing_ok=True)
    try:
        flow_run = ended(client, submit(client))
    finally:
        pipeline.write_text(text)
    assert flow_run.state is not None and flow_run.state.is_failed()
    assert tasks(client, flow_run.id)["fit@tiny"] == "TimedOut"
    assert not psutil.pid_exists(int(pid_file.read_text()))


def test_retraining_fetches_again_and_redoes_only_what_the_new_data_change(
    served: Served, client: SyncPrefectClient
) -> None:
    (served.folder / "source.txt").write_text("data of the first day")
    dvc(served.folder, served.variables, "repro", "quantize@tiny", "fetch@tiny")
    (served.folder / "source.txt").write_text("data of the second day")
    first = ended(client, submit(client, "retrain/retrain"))
    assert first.state is not None and first.state.is_completed()
    assert set(tasks(client, first.id).values()) == {"Completed"}
    assert (served.folder / "data/fit/tiny/model").read_text() == "data of the second day2"
    second = ended(client, submit(client, "retrain/retrain"))
    states = tasks(client, second.id)
    assert (states["fetch@tiny"], states["fit@tiny"], states["quantize@tiny"]) == ("Completed", "Unchanged", "Unchanged")


def test_the_retraining_is_scheduled_and_neither_deployment_runs_twice_at_once(
    served: Served, client: SyncPrefectClient
) -> None:
    retrain = client.read_deployment_by_name("retrain/retrain")
    assert [getattr(one.schedule, "cron", None) for one in retrain.schedules] == ["0 3 * * 1"]
    for name in ("retrain/retrain", "train-pipeline/train-pipeline"):
        limit = client.read_deployment_by_name(name).global_concurrency_limit
        assert limit is not None and limit.limit == 1


def test_a_run_whose_process_was_killed_is_closed_by_the_next_one(served: Served, client: SyncPrefectClient) -> None:
    settings(served, "{steps: 600, seconds: 1}")
    pid_file = served.folder / "rank.pid"
    pid_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "flows.train_pipeline", "tiny"]
    flow = subprocess.Popen(
        command, cwd=served.folder, env=served.variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until(lambda: pid_file.exists() and pid_file.read_text(), seconds=60)
    rank = psutil.Process(int(pid_file.read_text()))
    below = psutil.Process(flow.pid).children(recursive=True)
    abandoned = newest(client)
    flow.kill()
    flow.wait()
    until(lambda: not any(one.is_running() for one in [rank, *below]), seconds=60, what="processes outlived the flow")
    settings(served, "{steps: 2, seconds: 0.01}")
    said = python(served.folder, served.variables, "-m", "flows.train_pipeline", "tiny")
    assert f"{abandoned} was left running" in said
    state = client.read_flow_run(abandoned).state
    assert state is not None and state.is_crashed()


def test_a_run_whose_worker_was_killed_goes_on_to_its_end_and_leaves_nothing(
    served: Served, client: SyncPrefectClient
) -> None:
    settings(served, "{steps: 20, seconds: 0.2}")
    pid_file = served.folder / "rank.pid"
    pid_file.unlink(missing_ok=True)
    run = submit(client)
    until(lambda: pid_file.exists() and pid_file.read_text(), seconds=60)
    below = psutil.Process(served.workers[-1].pid).children(recursive=True)
    assert int(pid_file.read_text()) in [one.pid for one in below]
    served.workers[-1].kill()
    served.workers[-1].wait()
    hire(served)
    state = ended(client, run).state
    assert state is not None and state.is_completed(), state
    assert tasks(client, run)["fit@tiny"] == "Completed"
    until(lambda: "step 20 of the fit" in logs(client, run), seconds=20)
    until(lambda: not any(one.is_running() for one in below), seconds=30, what="processes outlived the run")


def newest(client: SyncPrefectClient) -> UUID:
    running = [run for run in client.read_flow_runs() if run.state and run.state.is_running()]
    assert len(running) == 1
    return running[0].id
