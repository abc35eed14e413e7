"""`slipway plan` shows the plan with its reasons and leaves it where training looks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cli.main import app
from contracts.plan import Hardware, Plan
from contracts.workload import ROOT
from tasks import plan as stage
from tests.cli import parsed_project
from tests.readme import readme_command

LAPTOP = Hardware((), "CPU", 2, 8 << 30, 8 << 30, 1 << 30, "Linux x86_64")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "detect", lambda: LAPTOP)
    return tmp_path


def test_the_plan_is_shown_with_its_reasons_and_training_takes_it(project: Path) -> None:
    shown = CliRunner().invoke(app, ["plan", "segmentation"])
    assert shown.exit_code == 0, shown.output
    made = Plan.read(project / "data/plan/segmentation/plan.json")
    assert " ".join(made.reasons["threads"].split()) in " ".join(shown.output.split())
    assert stage.current_plan("segmentation", stage.settings_of("segmentation"), LAPTOP) == made


def test_a_wish_that_cannot_be_is_an_error_with_the_way_out(project: Path) -> None:
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("micro_batch: null", "micro_batch: 12"))
    shown = CliRunner().invoke(app, ["plan", "segmentation"])
    assert shown.exit_code == 1
    assert "plan.micro_batch = 12 cannot be: it must be a multiple of train.ghost_batch = 8" in shown.output
    assert not (project / "data").exists()


@pytest.mark.slow
def test_measuring_times_real_steps_and_the_next_plan_takes_what_was_the_fastest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one backend, so that it takes seconds; all of them train in tests/test_every_backend.py."""
    folder = parsed_project.enter_tiny(tmp_path, monkeypatch, global_batch=8, ghost_batch=2)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["tiny"]["plan"] = {"backend": "single", "precision": "fp32"}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    _, plan, _, measure = readme_command(".venv/bin/slipway plan segmentation --measure")

    def said(*words: str) -> str:
        done = CliRunner().invoke(app, [*words])
        assert done.exit_code == 0, done.output
        return done.output

    first = said(plan, "tiny", measure)
    assert first.count("plan: single, ") == 2, "the fastest is timed once more"
    assert "samples/s   1.00" in first and "<- chosen" in first
    made = Plan.read(folder / "data/plan/tiny/plan.json")
    assert (made.backend, made.precision, made.global_batch) == ("single", "fp32", 8)
    again = said(plan, "tiny")
    assert "measured before and taken from .slipway" in again and "plan: single" not in again
    assert not (folder / "runs").exists()
