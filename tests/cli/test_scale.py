"""`slipway scale`: which ranks are timed, against what, and what is said of them."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.scale import Scaled, alone, as_row, as_table, plan_for, usual_ranks, why
from contracts.errors import SlipwayError
from contracts.plan import Device, Hardware, Plan
from contracts.run import RunSpec
from engine import hardware as hardware_module
from engine import trial
from engine.trial import Trial
from tests.cli import parsed_project
from tests.conftest import Scenes
from tests.readme import readme_command

MACHINE = Hardware((), "a processor", 8, 64 << 30, 60 << 30, 1 << 40, "Linux x86_64")
PLAN = Plan("ddp", "cpu", 4, 4, 3, 2, 1, 2, "fp32", {})  # a global batch of 48: 12 ghost batches of 4


def cost(seconds: float, *, sync: float = 0.0) -> Trial:
    return Trial((seconds,), 48 / seconds, {"sync": sync}, 1 << 30)


def scaled(ranks: int, seconds: float, *, sync: float = 0.0) -> Scaled:
    """So many ranks where one takes 12 seconds a step and an epoch has 10 steps."""
    return Scaled(plan_for(ranks, PLAN, MACHINE, ghost_batch=4), cost(seconds, sync=sync), cost(12), 10)


@pytest.mark.parametrize(("ranks", "threads", "backend"), [(1, 8, "single"), (2, 4, "ddp"), (3, 2, "ddp"), (12, 1, "ddp")])
def test_ranks_share_the_cores_and_the_global_batch(ranks: int, threads: int, backend: str) -> None:
    plan = plan_for(ranks, PLAN, MACHINE, ghost_batch=4)
    assert (plan.ranks, plan.threads, plan.backend, plan.workers) == (ranks, threads, backend, 0)
    assert plan.global_batch == 48 and plan.micro_batch == PLAN.micro_batch


def test_one_rank_to_compare_with_differs_in_nothing_else() -> None:
    plan = plan_for(3, PLAN, MACHINE, ghost_batch=4)
    lone = alone(plan)
    assert lone.global_batch == 48 and lone.ranks == 1
    same = {"backend": plan.backend, "ranks": plan.ranks, "accumulation": plan.accumulation}
    assert replace(lone, **same) == plan  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("ranks", "nearest"), [(5, "take 4 or 6,"), (8, "take 6 or 12,"), (24, "take 12,"), (0, "take 1,")])
def test_ranks_that_do_not_divide_are_refused_with_the_nearest_that_do(ranks: int, nearest: str) -> None:
    with pytest.raises(SlipwayError, match=f"{ranks} ranks do not divide a global batch of 48.*{nearest}"):
        plan_for(ranks, PLAN, MACHINE, ghost_batch=4)


def test_more_ranks_than_gpus_are_refused() -> None:
    cards = replace(MACHINE, devices=tuple(Device(index, "a card", 8 << 30, 8 << 30, (8, 6)) for index in range(2)))
    planned = replace(PLAN, device="cuda", ranks=2, accumulation=6)
    assert plan_for(2, planned, cards, ghost_batch=4).threads == planned.threads
    assert usual_ranks(planned, cards, ghost_batch=4) == [1, 2]
    with pytest.raises(SlipwayError, match="4 ranks need a GPU each, and there are 2"):
        plan_for(4, planned, cards, ghost_batch=4)


def test_speed_up_efficiency_and_epoch_follow_from_the_steps() -> None:
    row = as_row(scaled(4, 4.0))
    assert (row["speedup"], row["efficiency"], row["epoch_seconds"]) == (3.0, 0.75, 40.0)
    assert as_table([scaled(4, 4.0)]).splitlines()[1].split() == [
        "4",
        "x",
        "2",
        "12.0",
        "4,000",
        "0.000",
        "0:40",
        "3.00",
        "75%",
    ]


def test_where_the_time_went_is_said() -> None:
    text = why(scaled(4, 4.0, sync=0.25))
    assert "4 ranks reach 75%: a step takes 1,000 ms more" in text and "25% is waiting for each other" in text


def test_a_failed_number_of_ranks_leaves_the_others_their_numbers() -> None:
    found = [scaled(1, 12.0), replace(scaled(2, 6.0), trial=Trial(failed="no room"))]
    assert as_table(found).splitlines()[2].split(maxsplit=3)[3] == "no room"
    assert as_row(found[1])["failed"] == "no room" and as_row(found[0])["speedup"] == 1
    lonely = replace(scaled(2, 6.0), alone=Trial(failed="no room"))
    assert as_table([lonely]).splitlines()[1].split()[-3:] == ["1:00", "-", "-"] and as_row(lonely)["failed"] == "no room"


def test_the_command_times_each_layout_once_and_says_what_cannot_be_seen(
    scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[tuple[int, int]] = []

    def timer(spec: RunSpec, *, steps: int) -> Trial:
        timed.append((spec.plan.ranks, spec.plan.threads))
        return cost(8 / spec.plan.ranks)

    two_cores = replace(MACHINE, cores=2)
    monkeypatch.setattr(hardware_module, "detect", lambda: two_cores)
    monkeypatch.setattr(trial, "run_trial", timer)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 80.0)
    parsed_project.enter(tmp_path, scenes, monkeypatch, global_batch=128, ghost_batch=2)
    result = CliRunner().invoke(app, ["scale", "segmentation", "--ranks", "1", "2", "4", "--steps", "3"])
    assert result.exit_code == 0, result.output
    assert timed == [(1, 2), (2, 1), (1, 1), (4, 1)]
    assert "4 ranks share 2 cores" in result.output and "80% busy with other work" in result.output
    folder = tmp_path / "profiles" / "segmentation"
    rows = list(csv.DictReader((folder / "scale.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["ranks"], row["speedup"]) for row in rows] == [("1", "1.0"), ("2", "2.0"), ("4", "4.0")]
    assert (folder / "scale.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_two_real_ranks_are_timed_beside_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_core = replace(hardware_module.detect(), devices=(), cores=1)  # so that one rank alone is timed once
    monkeypatch.setattr(hardware_module, "detect", lambda: one_core)
    parsed_project.enter_tiny(tmp_path, monkeypatch, global_batch=64, ghost_batch=8)
    _, scale, _, *ranks = readme_command(".venv/bin/slipway scale segmentation --ranks 1 2")
    result = CliRunner().invoke(app, [scale, "tiny", *ranks])
    assert result.exit_code == 0, result.output
    assert result.output.count("samples/s\n") == 2 and "2 ranks share 1 core:" in result.output
    table = (tmp_path / "profiles" / "tiny" / "scale.csv").read_text(encoding="utf-8").splitlines()
    one, two = csv.DictReader(table)
    assert (one["ranks"], one["backend"], two["ranks"], two["backend"]) == ("1", "single", "2", "ddp")
    assert (one["accumulation"], two["accumulation"]) == ("2", "1") and not one["failed"] + two["failed"]
    assert (float(one["speedup"]), float(one["efficiency"])) == (1, 1)
    alone, together = float(one["step_seconds"]), float(two["step_seconds"])
    assert float(two["speedup"]) == pytest.approx(alone / together, rel=1e-3)
    assert float(two["samples_per_second"]) == pytest.approx(64 / together, rel=1e-3)
    assert 0 < float(two["sync_seconds"]) < together
