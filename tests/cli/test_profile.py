"""`slipway profile`: what is tried, what is said of it, and the files that stay."""

from __future__ import annotations

import csv
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cli.profile import Measured, advice, as_table, divisions, draw, measure, profile
from cli.trials import GIB
from contracts.errors import SlipwayError
from contracts.plan import Plan
from contracts.run import RunSpec
from engine import hardware as hardware_module
from engine import trial
from engine.trial import PARTS, Trial
from tests.cli import parsed_project

PLAN = Plan("ddp", "cpu", 2, 4, 4, 1, 0, 2, "fp32", {})
USUAL = {"data": 0.05, "forward": 0.3, "backward": 0.55, "optimizer": 0.05, "sync": 0.05}


def cost(seconds: float, *, gib: float = 6, shares: dict[str, float] = USUAL, uneven: float = 1) -> Trial:
    """A trial of three steps of 32 samples."""
    parts = {name: share * seconds for name, share in shares.items()}
    return Trial((seconds, seconds, seconds * uneven), 32 / seconds, parts, int(gib * GIB))


def sized(*trials: Trial, plan: Plan = PLAN) -> list[Measured]:
    """Trials of micro-batches of 4, 8, 16 samples."""
    return [
        Measured(replace(plan, micro_batch=4 << place, accumulation=4 >> place), one) for place, one in enumerate(trials)
    ]


def said(found: Sequence[Measured], plan: Plan = PLAN) -> str:
    return " ".join(advice(found, plan, limit=10 * GIB))


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:])


@pytest.mark.parametrize(
    ("share", "planned", "sizes"),
    [(8, 2, [1, 2, 4, 8]), (6, 1, [1, 2, 3, 6]), (1, 1, [1]), (15, 15, [1, 3, 5, 15]), (36, 18, [1, 2, 4, 6, 12, 18, 36])],
)
def test_micro_batches_double_up_to_a_ranks_share_and_all_make_the_global_batch(
    share: int, planned: int, sizes: list[int]
) -> None:
    plan = replace(PLAN, micro_batch=4 * planned, accumulation=share // planned)
    found = divisions(plan, ghost_batch=4)
    assert [one.micro_batch // 4 for one in found] == sizes
    assert {one.global_batch for one in found} == {plan.global_batch}


def test_a_size_that_does_not_fit_is_the_last_that_is_tried(
    make_spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tried: list[int] = []

    def short_of_memory(spec: RunSpec, *, steps: int) -> Trial:
        tried.append(spec.plan.micro_batch)
        return cost(1) if spec.plan.micro_batch < 4 else Trial(failed="no room")

    monkeypatch.setattr(trial, "run_trial", short_of_memory)
    found = measure(make_spec(global_batch=16), steps=3)
    assert tried == [2, 4]
    assert as_table(found).splitlines()[-1].split(maxsplit=3) == ["4", "x", "4", "no room"]
    assert "Micro-batches of 4 do not train here: no room." in said(found)
    draw(found, found[0].plan, tmp_path / "profile.png", title="A title", limit=GIB, steps=3)
    with pytest.raises(SlipwayError, match="not even one ghost batch of 4 samples trains here: no room. Lower"):
        measure(make_spec(ghost_batch=4, micro_batch=4), steps=3)


def test_the_fastest_micro_batch_is_advised_with_what_it_gains() -> None:
    assert "Micro-batches of 16 train 2.00 times as fast as the planned 4: set plan.micro_batch to 16." in said(
        sized(cost(1), cost(0.8), cost(0.5))
    )


def test_of_equally_fast_micro_batches_the_smallest_is_advised() -> None:
    assert "Micro-batches of 8 train 1.6" in said(sized(cost(1), cost(0.61), cost(0.6)))


def test_a_single_micro_batch_is_said_to_be_the_only_one() -> None:
    assert "Micro-batches of 4 are the only ones that divide the global batch of 32 and fit." in said(sized(cost(1)))


def test_a_gain_within_the_noise_is_no_reason_to_change() -> None:
    assert "The planned micro-batches of 4 are as fast as any" in said(sized(cost(1), cost(0.99), cost(1.2)))


def test_a_planned_micro_batch_that_does_not_fit_is_said() -> None:
    text = said(sized(cost(1), cost(0.9), Trial(failed="no room")), replace(PLAN, micro_batch=16, accumulation=1))
    assert "The planned micro-batches of 16 do not fit: set plan.micro_batch to 8." in text


@pytest.mark.parametrize(
    ("part", "plan", "words"),
    [
        ("data", PLAN, "Data takes 30% of a step, because each rank makes its own batches"),
        ("data", replace(PLAN, workers=3), "although 3 loader processes a rank read ahead: give the job more cores"),
        ("sync", PLAN, "Waiting for other ranks takes 30% of a step: set plan.compress_gradients"),
        ("sync", replace(PLAN, compress_gradients=True), "30% of a step: see with `slipway scale`"),
        ("sync", replace(PLAN, backend="fsdp"), "30% of a step: raise plan.micro_batch"),
        ("optimizer", PLAN, "The optimiser takes 30% of a step"),
    ],
)
def test_a_part_that_takes_much_is_named_with_a_way_out(part: str, plan: Plan, words: str) -> None:
    usual, much = sized(cost(1), plan=plan), {**USUAL, "forward": 0.05, part: 0.3}
    assert "% of a step" not in said(usual, plan)
    assert words in said(sized(cost(1, shares=much), plan=plan), plan)


@pytest.mark.parametrize(("gib", "words"), [(2, "there is room"), (6, "takes 6.00 of 10.0 GiB."), (9.5, "nearly all")])
def test_the_room_in_memory_is_said(gib: float, words: str) -> None:
    assert words in said(sized(cost(1, gib=gib)))


def test_uneven_steps_are_said() -> None:
    assert "small differences here mean nothing" not in said(sized(cost(1)))
    assert "Some steps took 2.0 times the median" in said(sized(cost(1), cost(1, uneven=2)))


def test_data_that_was_not_parsed_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("segmentation: {}\n")
    with pytest.raises(SlipwayError, match="records.arrow is missing: run the parse stage first"):
        profile("segmentation")


@pytest.mark.slow
def test_a_real_profile_leaves_a_picture_and_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_core = replace(hardware_module.detect(), devices=(), cores=1)  # two ranks are timed in tests/cli/test_scale.py
    monkeypatch.setattr(hardware_module, "detect", lambda: one_core)
    folder = parsed_project.enter_tiny(tmp_path, monkeypatch, global_batch=4, ghost_batch=2) / "profiles" / "tiny"
    profile("tiny", steps=2)
    rows: list[dict[str, Any]] = list(csv.DictReader((folder / "profile.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["micro_batch"], row["accumulation"]) for row in rows] == [("2", "2"), ("4", "1")]
    for row in rows:
        assert not row["failed"]
        parts = [float(row[f"{name}_seconds"]) for name in PARTS]
        assert 0 < sum(parts) < 1.5 * float(row["step_seconds"])
        assert float(row["samples_per_second"]) == pytest.approx(4 / float(row["step_seconds"]), rel=1e-3)
    width, height = png_size(folder / "profile.png")
    assert width > 1500 and height > 500
    out = capsys.readouterr().out
    assert "single on 1 CPU rank x 1 thread" in out and "samples/s" in out
    assert re.search(r"\* (The planned micro-batches of|Micro-batches of) [24] (are as fast as any|train )", out)
    assert f"written: {Path('profiles', 'tiny', 'profile.png')}" in out
