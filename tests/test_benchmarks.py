"""A measurement says what made it (the command as it was given, the code, the day and the machine), and a bar is met by all it asks for."""

from __future__ import annotations

import itertools
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import conditions, generation, in_context
from benchmarks.distillation import judged
from benchmarks.in_context import Learner, chart_of, row_of
from contracts.files import read_json


def test_a_result_names_its_command_with_its_options_and_no_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["ranks.py", "--turns", "5", "--folder", str(tmp_path / "kept")])
    conditions.write_result("ranks", bar="none", met=True, load=0.123, rows=[1])
    found = read_json(tmp_path / "ranks.json")
    assert found["command"] == "python -m benchmarks.ranks --turns 5 --folder kept"
    assert found["date"] == date.today().isoformat()
    assert found["git"] is None or len(found["git"]["revision"]) == 40
    assert (found["bar"], found["met"], found["load_before"], found["rows"]) == ("none", True, 0.12, [1])
    assert found["cpu"] and found["cores"] and str(tmp_path) not in (tmp_path / "ranks.json").read_text()


def test_a_bar_is_met_where_its_worst_row_meets_it() -> None:
    fast, slow, alone = (
        {"rollouts": 64, "ratio": 60.0, "ratio_by_torch": 31.0},
        {"rollouts": 64, "ratio": 31.0, "ratio_by_torch": 29.0},
        {"rollouts": 1, "ratio": 14.0, "ratio_by_torch": 9.0},
    )
    others = {"training": [{"ratio": 60.0}], "histories": [{"ratio": 25.0}, {"ratio": 20.0}]}
    found = judged({**others, "playing": [fast, slow]})
    assert found["bars_met"] == {"training": True, "playing": False, "histories": True} and not found["met"]
    assert [(row["met"], row["met_by_torch"]) for row in found["playing"]] == [(True, True), (True, False)]
    found = judged({**others, "playing": [fast, alone]})
    assert found["met"] and not found["playing"][1]["met"]
    assert not judged({**others, "playing": [fast], "histories": [{"ratio": 25.0}, {"ratio": 19.0}]})["met"]


def test_a_row_of_other_settings_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    monkeypatch.setattr(in_context, "reached", lambda project, core: made.append(project) or {"curve": "0.100 0.900"})
    learner = Learner("default", "ppo", split=0, seed=0)
    first = row_of(learner, tmp_path, 0)
    assert row_of(learner, tmp_path, 0) == first and len(made) == 1
    assert first["code"] is None or len(first["code"]["revision"]) == 40
    monkeypatch.setitem(in_context.OTHER_SOURCES, "ppo", {"download": {"episodes": 7}})
    assert row_of(learner, tmp_path, 0)["made_of"] != first["made_of"] and len(made) == 2


def test_the_chart_of_trainings_shows_their_mean_and_how_far_they_lie_apart() -> None:
    shared = {"source": "explorer", "random": 0.01, "source_curve": "0.100 0.500"}
    rows = [{"preset": "default", **shared, "curve": curve} for curve in ("0.000 0.900", "0.200 1.000")]
    rows += [
        {"preset": "compressed", **shared, "curve": "0.100 0.800"},
        {"preset": "default", "source": "ppo", "refused_by": "parse"},
    ]
    chart = chart_of(rows)
    means = {name: y for name, (_, y) in chart.lines.items()}
    assert means == {
        "plain AD": pytest.approx([0.1, 0.95]),
        "compressed AD": [0.1, 0.8],
        "source": [0.1, 0.5],
        "random": [0.01] * 2,
        "optimum": [1.0] * 2,
    }
    assert chart.main == "plain AD" and chart.bands["plain AD"] == (pytest.approx([0, 0.9]), pytest.approx([0.2, 1]))


def test_a_caption_that_differs_in_one_turn_is_not_counted_as_equal() -> None:
    turns = itertools.count()

    def changing(images: list[Any]) -> list[list[int]]:
        return [[1, 2, int(next(turns) == 1)], *([1, 2, 0] for _ in images[1:])]

    images = [np.zeros((1, 1, 3), np.uint8)] * 3
    found = generation.compare(changing, lambda images: [[1, 2, 0] for _ in images], images, 3)
    assert (found["captions"], found["equal"], len(found["ratios"])) == (3, 2, generation.TURNS)


@pytest.mark.parametrize(
    ("ratio", "captions", "equal", "met"),
    [(2.0, 200, 200, True), (1.9, 200, 200, False), (9, 200, 199, False), (9, 4, 4, False)],
)
def test_a_bar_is_met_by_enough_captions_that_are_all_equal(ratio: float, captions: int, equal: int, met: bool) -> None:
    assert generation.is_met({"ratio_median": ratio, "captions": captions, "equal": equal}) == met
