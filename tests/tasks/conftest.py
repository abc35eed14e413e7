"""A project folder whose one workload was trained, for the tests of the stages that come after."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from contracts import workload as workloads
from tests.tasks import digit_workload


@pytest.fixture(scope="session")
def trained_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as it stands after train; tests work on copies."""
    folder = tmp_path_factory.mktemp("trained")
    digit_workload.write_project(folder)
    return folder


@pytest.fixture(scope="session")
def exported_project(trained_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as it stands after evaluate and export."""
    from tasks import evaluate, export

    folder = tmp_path_factory.mktemp("exported") / "project"
    shutil.copytree(trained_project, folder)
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        evaluate.run(digit_workload.NAME)
        export.run(digit_workload.NAME)
    return folder


@pytest.fixture
def project(trained_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained project, as the current folder."""
    return enter(Path(shutil.copytree(trained_project, tmp_path / "project")), monkeypatch)


@pytest.fixture
def exported(exported_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the exported project, as the current folder."""
    return enter(Path(shutil.copytree(exported_project, tmp_path / "project")), monkeypatch)


def enter(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make `folder` the project at hand, with the digits as a workload of the house."""
    patch.chdir(folder)
    known = workloads.load
    patch.setattr(workloads, "load", lambda name: digit_workload.Digits() if name == digit_workload.NAME else known(name))
    return folder
