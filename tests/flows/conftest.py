"""A throwaway project, and once for the module a real Prefect server with a process worker on it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.tiny_project import Served, answers, environment, hire, make_project, run, start, stop, until
from tests.readme import readme_command


@pytest.fixture
def project(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A project of its own, and the environment for what runs in it. It has no Prefect server."""
    variables = environment(tmp_path / "home")
    return make_project(tmp_path / "project", variables), variables


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A project, a Prefect server and a process worker, all with a home of their own."""
    root = tmp_path_factory.mktemp("served")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    variables = environment(root / "home", PREFECT_API_URL=url, PREFECT_SERVER_API_PORT=str(port))
    folder = make_project(root / "project", variables)
    server = start(readme_command(".venv/bin/prefect server start"), folder, variables, root / "server")
    try:
        until(lambda: answers(f"{url}/health"), seconds=240, what=root / "server")
        run(readme_command(".venv/bin/prefect work-pool create slipway --type process"), folder, variables)
        run(readme_command(".venv/bin/prefect --no-prompt deploy --all"), folder, variables)
        served = Served(folder, variables, url, readme_command(".venv/bin/prefect worker start --pool slipway"))
        hire(served)
        try:
            yield served
        finally:
            for worker in served.workers:
                stop(worker)
    finally:
        stop(server)
