"""`slipway plan` shows the plan with its reasons and leaves it where training looks."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from contracts.plan import Hardware, Plan
from contracts.workload import ROOT
from tasks import plan as stage

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
