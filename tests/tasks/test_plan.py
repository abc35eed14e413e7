"""The plan stage writes what it decided; training takes that plan only where it fits machine and settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from contracts.errors import SlipwayError
from contracts.plan import Device, Hardware, Plan
from contracts.run import RunSpec
from contracts.settings import Settings
from contracts.workload import ROOT, load, settings_of
from engine import choosing
from engine.deepspeed_config import deepspeed_config
from engine.trial import Trial
from tasks import plan as stage
from workloads.captioning.settings import Base, CaptioningPrepare, CaptioningSettings

GIB = 1 << 30
L4 = Device(0, "NVIDIA L4", 22 * GIB, 21 * GIB, (8, 9))
LAPTOP = Hardware((), "CPU", 2, 8 * GIB, 8 * GIB, GIB, "Linux x86_64")
SERVER = Hardware((L4,), "CPU", 16, 64 * GIB, 60 * GIB, 100 * GIB, "Linux x86_64", driver="590.48", notes=("GPU 1 is odd",))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with the shipped params.yaml, as the working folder."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(plan: dict[str, Any] | None = None, /, **train: int) -> Settings:
    return Settings.model_validate({"train": {"global_batch": 16, "ghost_batch": 8, **train}, "plan": plan or {}})


def write(project: Path, made: Plan) -> Path:
    path = project / "data/plan/segmentation/plan.json"
    made.write(path)
    return path


def test_the_stage_writes_plan_hardware_and_the_report_it_prints(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "detect", lambda: LAPTOP)
    stage.run("segmentation")
    folder = project / "data/plan/segmentation"
    assert sorted(path.name for path in folder.iterdir()) == ["hardware.json", "plan.json", "report.txt"]
    assert (folder / "report.txt").read_text() == capsys.readouterr().out
    made = Plan.read(folder / "plan.json")
    assert made.global_batch == 16
    assert json.loads((folder / "hardware.json").read_text())["cores"] == 2
    assert "nothing to probe" in (folder / "report.txt").read_text()


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


def test_a_plan_for_other_wishes_is_made_anew(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(project, stage.plan(LAPTOP, settings().train))
    assert stage.current_plan("segmentation", settings({"backend": "fsdp"}), LAPTOP).backend == "fsdp"
    assert "is for other wishes than plan.backend fsdp" in capsys.readouterr().out


def test_deepspeeds_own_configuration_lies_beside_its_plan(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("backend: auto ", "backend: deepspeed "))
    monkeypatch.setattr(stage, "detect", lambda: LAPTOP)
    stage.run("segmentation")
    folder = project / "data/plan/segmentation"
    config, clip_norm = json.loads((folder / "deepspeed.json").read_text()), settings_of("segmentation").train.clip_norm
    assert config == deepspeed_config(Plan.read(folder / "plan.json"), clip_norm=clip_norm), "as its ranks are told"
    assert (config["train_batch_size"], config["zero_optimization"]["stage"]) == (16, 2)


Speeds = dict[tuple[str, str], float]


def timer(speeds: Speeds, asked: list[tuple[str, str]] | None = None) -> Callable[[RunSpec, int], Trial]:
    """Stands for `engine.trial`: samples/s by backend and precision, 10 for others; what is not faster than 0 fails."""

    def time(spec: RunSpec, steps: int) -> Trial:
        name = (spec.plan.backend, spec.plan.precision)
        if asked is not None:
            asked.append(name)
        speed = speeds.get(name, 10.0)
        return Trial((spec.plan.global_batch / speed,) * steps, speed) if speed > 0 else Trial(failed="memory ran out")

    return time


def measured(speeds: Speeds, hardware: Hardware = LAPTOP, **how: Any) -> choosing.Chosen:
    def spec_for(made: Plan) -> RunSpec:
        return RunSpec("segmentation", {"train": {"ghost_batch": 8}}, {}, "", "", "", plan=made, fingerprint="")

    how = {"time": timer(speeds), "measure": True, **how}
    return choosing.choose("segmentation", how.pop("settings", settings()), hardware, spec_for, **how)


def test_the_fastest_is_taken_by_measurement_and_the_table_shows_how_much(project: Path) -> None:
    chosen = measured({("accelerate", "fp32"): 20.0, ("fsdp", "fp32"): 0.0})
    assert chosen.plan.backend == "accelerate"
    assert chosen.plan.reasons["backend"] == "measured: 20.0 samples/s, 2.00 times single, 1 x 2 threads, fp32"
    lines = choosing.table(chosen.rows)
    assert lines[0].startswith("accelerate, 2 x 1 thread, fp32") and "1.00" in lines[0] and lines[0].endswith("<- chosen")
    assert "0.50" in lines[1]
    assert lines[-1].startswith("fsdp") and lines[-1].endswith("no: memory ran out")


def test_of_equally_fast_ones_the_simplest_is_taken(project: Path) -> None:
    chosen = measured({("deepspeed", "fp32"): 10.2})
    assert chosen.plan.backend == "single"
    assert "within 3% of deepspeed" in chosen.plan.reasons["backend"]


def test_those_near_the_top_are_timed_twice(project: Path) -> None:
    asked: list[tuple[str, str]] = []
    speeds = {("single", "fp32"): 10.0, ("ddp", "fp32"): 8.0, ("accelerate", "fp32"): 1, ("fsdp", "fp32"): 1}
    measured(speeds, time=timer({**speeds, ("deepspeed", "fp32"): 1}, asked))
    assert sorted(asked.count((name, "fp32")) for name in ("single", "ddp", "accelerate", "fsdp", "deepspeed")) == [
        1,
        1,
        1,
        2,
        2,
    ]


def test_plans_that_differ_no_more_than_two_timings_of_one_are_equally_fast(project: Path) -> None:
    timings = {"single": [5.0], "ddp": [10.0, 12.0], "accelerate": [11.0, 13.0], "fsdp": [1.0], "deepspeed": [9.5, 11.0]}

    def time(spec: RunSpec, steps: int) -> Trial:
        return timer({(spec.plan.backend, "fp32"): timings[spec.plan.backend].pop(0)})(spec, steps)

    chosen = measured({}, time=time)
    assert chosen.plan.backend == "ddp", "8% slower than accelerate, where two timings of one plan differ by 15%"
    assert chosen.plan.reasons["backend"] == (
        "measured: 12.0 samples/s, within 15% of accelerate, 2 x 1 thread, fp32 and simpler or more exact"
    )
    assert "two timings of one plan differ by 15%" in chosen.lines[-1]
    assert not any(timings.values()), "each near the top twice, in turns"


def test_a_busy_machine_is_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing.psutil, "getloadavg", lambda: (7.0, 1.0, 1.0))
    assert any("load 7.0 on 2 cores" in line for line in measured({}).lines)
    monkeypatch.setattr(choosing.psutil, "getloadavg", lambda: (0.5, 1.0, 1.0))
    assert not any("load" in line for line in measured({}, anew=True).lines)


def test_what_was_measured_is_kept_for_the_same_machine_model_and_wishes(project: Path) -> None:
    first = measured({("ddp", "fp32"): 20.0})
    again = measured({("fsdp", "fp32"): 99.0}, measure=False)
    assert again.plan == first.plan
    assert "measured before and taken from .slipway/plans/" in again.lines[0].replace("\\", "/")
    assert measured({("fsdp", "fp32"): 99.0}, anew=True).plan.backend == "fsdp"
    others = [
        measured({}, replace(LAPTOP, cores=4)),
        measured({}, settings=settings(global_batch=32)),
        measured({}, settings=settings({"restarts": 1})),
        *(
            measured({}, settings=CaptioningSettings(prepare=CaptioningPrepare(encoder=one)))
            for one in (None, Base(name="a"))
        ),
    ]
    assert not any("measured before" in line for chosen in others for line in chosen.lines)


def test_a_broken_file_of_a_kept_plan_is_measured_anew(project: Path) -> None:
    measured({})
    (kept,) = (project / ".slipway/plans").iterdir()
    kept.write_text("{")
    assert measured({("fsdp", "fp32"): 99.0}).plan.backend == "fsdp"


def test_where_nothing_can_be_timed_every_reason_is_given(project: Path) -> None:
    failing = {(name, "fp32"): 0.0 for name in ("single", "ddp", "accelerate", "fsdp", "deepspeed")}
    with pytest.raises(SlipwayError, match="no plan could be timed: single, .*: memory ran out; ddp"):
        measured(failing)


def test_measuring_needs_parsed_data_and_says_how_to_get_it(project: Path) -> None:
    with pytest.raises(SlipwayError, match="run the parse stage first"):
        stage.run("segmentation", measure=True)


@pytest.mark.slow
def test_a_small_device_gets_the_batch_that_was_seen_to_fit(
    make_spec: Callable[..., RunSpec], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIPWAY_MEMORY_LIMIT", "21500000")
    spec = make_spec(image_size=64)
    wanted = load(spec.workload).Settings.model_validate(spec.settings)
    alone = replace(LAPTOP, cores=1)
    chosen = choosing.choose("segmentation", wanted, alone, lambda made: replace(spec, plan=made))
    assert (chosen.plan.micro_batch, chosen.plan.accumulation) == (4, 2)
    assert "4 samples fit on every rank, at 0.0" in chosen.plan.reasons["micro_batch"]
    assert "8 do not (2 tries of 3 candidates)" in chosen.plan.reasons["micro_batch"]
    assert chosen.lines[0].startswith("memory model: 0.0")
