"""The plan stage writes what it decided; training takes that plan only where it fits machine and settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from contracts.errors import SlipwayError
from contracts.plan import Device, Hardware, Plan
from contracts.settings import Settings
from contracts.workload import ROOT
from tasks import plan as stage

GIB = 1 << 30
L4 = Device(0, "NVIDIA L4", 22 * GIB, 21 * GIB, (8, 9))
SERVER = Hardware((L4,), "CPU", 16, 64 * GIB, 60 * GIB, 100 * GIB, "Linux x86_64", driver="590.48", notes=("GPU 1 is odd",))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with the shipped params.yaml, as the working folder."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(**train: int) -> Settings:
    return Settings.model_validate({"train": {"global_batch": 16, "ghost_batch": 8, **train}})


def write(project: Path, made: Plan) -> Path:
    path = project / "data/plan/segmentation/plan.json"
    made.write(path)
    return path


def test_the_stage_writes_plan_hardware_and_the_report_it_prints(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage.run("segmentation")
    folder = project / "data/plan/segmentation"
    assert sorted(path.name for path in folder.iterdir()) == ["hardware.json", "plan.json", "report.txt"]
    assert (folder / "report.txt").read_text() == capsys.readouterr().out
    made = Plan.read(folder / "plan.json")
    assert made.global_batch == 16
    assert json.loads((folder / "hardware.json").read_text())["cores"] >= 1


def test_a_plan_for_this_machine_is_taken_as_it_is(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = stage.plan(SERVER, settings().train)
    write(project, made)
    assert stage.current_plan("segmentation", settings(), SERVER) == made
    assert capsys.readouterr().out == ""


def test_a_plan_of_another_machine_is_made_anew_and_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Hardware((), "other CPU", 2, 8 * GIB, 8 * GIB, GIB, "Linux x86_64")
    write(project, stage.plan(other, settings().train))
    made = stage.current_plan("segmentation", settings(), SERVER)
    assert made.device == "cuda"
    assert "another machine (Linux x86_64|other CPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "said"), [({"global_batch": 32}, "a global batch of 16, not 32"), ({"ghost_batch": 16}, "")]
)
def test_a_plan_for_other_settings_is_made_anew(
    project: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, int], said: str
) -> None:
    write(project, stage.plan(SERVER, settings().train))
    made = stage.current_plan("segmentation", settings(**changed), SERVER)
    assert made.global_batch == settings(**changed).train.global_batch
    assert said in capsys.readouterr().out


def test_a_ghost_batch_that_the_old_plan_cuts_is_not_cut(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = Hardware((), "CPU", 2, 8 * GIB, 8 * GIB, GIB, "Linux x86_64")
    write(project, stage.plan(slow, settings().train))
    assert stage.current_plan("segmentation", settings(ghost_batch=16), slow).micro_batch == 16
    assert "another ghost batch than 16" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{", "[]", '{"backend": "ddp"}', '{"newer": 1}'])
def test_an_unreadable_plan_is_made_anew_and_said(project: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    path = project / "data/plan/segmentation/plan.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert stage.current_plan("segmentation", settings(), SERVER).global_batch == 16
    assert "cannot be read" in capsys.readouterr().out


def test_no_plan_is_made_anew_and_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage.current_plan("segmentation", settings(), SERVER)
    assert "plan.json is not there" in capsys.readouterr().out


def test_the_report_shows_gpus_notes_and_every_reason() -> None:
    made = stage.plan(SERVER, settings().train)
    text = stage.report(SERVER, {"segmentation": made, "broken": SlipwayError("too big a batch")})
    for part in ("GPU 0: NVIDIA L4", "Memory: 22.0 GiB (free: 21.0 GiB)", "Compute: 8.9", "590.48", "note: GPU 1 is odd"):
        assert part in text
    assert "TRAINING PLAN: segmentation" in text
    assert "no plan: too big a batch" in text
    words = " ".join(text.split())
    assert all(" ".join(reason.split())[:30] in words for reason in made.reasons.values())
    assert max(map(len, text.splitlines())) <= stage.WIDTH


def test_slipway_hardware_prints_the_report_of_every_workload(project: Path) -> None:
    import typer

    from cli.hardware import hardware

    app = typer.Typer()
    app.command()(hardware)
    shown = CliRunner().invoke(app, [])
    assert shown.exit_code == 0
    assert "TRAINING PLAN: segmentation" in shown.output
    value = json.loads(CliRunner().invoke(app, ["segmentation", "--json"]).output)
    assert value["plans"]["segmentation"]["reasons"]["ranks"]
    (project / "params.yaml").unlink()
    assert "HARDWARE DETECTION" in CliRunner().invoke(app, []).output
    assert CliRunner().invoke(app, ["segmentation"]).exit_code == 1
