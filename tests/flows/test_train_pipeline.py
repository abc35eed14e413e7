"""The flow from a terminal, with no Prefect server anywhere: its own ends with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.flows.tiny_project import PARAMS, environment, make_project, python, until


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A project whose training takes hours, and a Prefect home that no server has used before."""
    root = tmp_path_factory.mktemp("terminal")
    variables = environment(root / "home")
    folder = make_project(root / "project", variables)
    (folder / "params.yaml").write_text(PARAMS.replace("{steps: 2, seconds: 0.01}", "{steps: 600, seconds: 10}"))
    return folder, variables


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_flow_that_is_stopped_leaves_no_process_behind_not_even_its_server(
    endless: tuple[Path, dict[str, str]], how: signal.Signals, tmp_path: Path
) -> None:
    folder, variables = endless
    pid_file = folder / "rank.pid"
    pid_file.unlink(missing_ok=True)
    with (tmp_path / "said").open("wb") as said:
        command = [sys.executable, "-m", "flows.train_pipeline"]
        flow = subprocess.Popen(command, cwd=folder, env=variables, stdout=said, stderr=said)
        until(lambda: pid_file.exists() and pid_file.read_text(), seconds=240, what=tmp_path / "said")
    below = [*psutil.Process(flow.pid).children(recursive=True), psutil.Process(int(pid_file.read_text()))]
    assert any(map(is_server, below)), "the flow started no server of its own"
    flow.send_signal(how)
    status = flow.wait(timeout=60)
    until(lambda: not any(one.is_running() for one in below), seconds=60, what="processes outlived the flow")
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]


def is_server(process: psutil.Process) -> bool:
    """Not where it has ended since it was listed, as commands of a moment do."""
    with suppress(psutil.NoSuchProcess):
        return "server" in process.cmdline()
    return False


def test_a_workload_that_does_not_exist_is_refused_at_once_and_without_a_traceback(
    project: tuple[Path, dict[str, str]],
) -> None:
    said = python(*project, "-m", "flows.train_pipeline", "nope", status=1)
    assert said.startswith("error: no stage of dvc.yaml is for 'nope'") and "Traceback" not in said
    assert "usage:" in python(*project, "-m", "flows.train_pipeline", "--help", status=2)
