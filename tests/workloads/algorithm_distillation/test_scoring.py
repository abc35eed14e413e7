"""What rollouts are worth: numbers, a table, a curve, pictures, and predictions for tasks of one's own."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.use import preset_file, presets_of
from contracts.errors import SlipwayError
from contracts.raw import RawInput
from contracts.settings import read_params, validate
from contracts.workload import Run, Scores
from engine.torch_runtime import torch_run
from tasks.publishing.release import beyond_limits
from workloads.algorithm_distillation import WORKLOAD
from workloads.algorithm_distillation.graph import graphs
from workloads.algorithm_distillation.objective import build
from workloads.algorithm_distillation.predicting import predict, read_tasks
from workloads.algorithm_distillation.scoring import METRIC, score
from workloads.algorithm_distillation.settings import DistillationSettings, RolloutEvaluate

from .conftest import Tiny


def rollout(group: str, returns: list[int], optimum: int) -> dict[str, Any]:
    return {"group": group, "returns": returns, "source": returns[::-1], "optimum": optimum, "random": 1.0}


def test_the_metric_is_the_return_of_the_last_episodes_as_a_share_of_the_optimum() -> None:
    found = score([rollout("a", [0, 5, 10], 10), rollout("b", [0, 20, 20], 20)], RolloutEvaluate(last=2))
    assert found.metrics[METRIC] == pytest.approx((0.75 + 1) / 2)
    assert found.metrics["first_episode"] == 0 and found.metrics["worst_task"] == 0.75
    assert found.metrics["source"] == pytest.approx((0.25 + 0.5) / 2)
    assert found.metrics["random"] == pytest.approx(0.075)
    assert [row["task"] for row in found.rows] == ["a", "b"]
    assert found.charts[0].lines["model"][1] == [0, 0.75, 1]


def test_the_actions_that_are_found_count_after_each_number_of_compressions() -> None:
    """By targets, not by histories; what was not shown, and an episode without targets, count nothing."""
    shown = [{"right": [0, 2, 3], "targets": [0, 4, 4]}, {"right": [0, 0, 1], "targets": [0, 4, 2]}, {}]
    found = score([{**rollout("a", [0, 5, 10], 10), **one} for one in shown], RolloutEvaluate(last=2), window=2)
    wanted = {"action_accuracy": 6 / 14, "action_accuracy_depth_0": 2 / 8, "action_accuracy_depth_1": 4 / 6}
    assert {name: value for name, value in found.metrics.items() if "accuracy" in name} == pytest.approx(wanted)
    assert found.meanings.keys() >= wanted.keys() and "depth 1" in found.meanings["action_accuracy_depth_1"]
    assert found.charts[1].lines["model"] == ([2, 3], pytest.approx([2 / 8, 4 / 6]))
    plain = score([{**rollout("a", [0, 5, 10], 10), **shown[0]}], RolloutEvaluate(last=2)).metrics
    assert [name for name in plain if "accuracy" in name] == ["action_accuracy"]


def played(num_tasks: int, *, rollouts: int = 4, spread: float = 0.25) -> Scores:
    """The scores of so many tasks, each learnt as well as chance has it."""
    rng = np.random.default_rng(0)
    levels = 50 + 100 * rng.uniform(-spread, spread, num_tasks)
    made = [
        rollout(str(task), [0, *map(int, [level] * 2)], 100) for task, level in enumerate(levels) for _ in range(rollouts)
    ]
    return score(made, RolloutEvaluate(last=2))


def test_bands_hold_the_mean_and_are_wider_with_fewer_tasks() -> None:
    """Rollouts of one task say little of others: more of them do not narrow the band."""
    widths = []
    for found in (played(64), played(4), played(4, rollouts=64)):
        low, high = found.metrics["low"], found.metrics["high"]
        assert low < found.metrics[METRIC] < high
        chart = found.charts[0]
        for name in ("model", "source"):
            lows, highs = chart.bands[name]
            assert all(a <= b <= c for a, b, c in zip(lows, chart.lines[name][1], highs, strict=True))
        assert (chart.bands["model"][0][-1], chart.bands["model"][1][-1]) == pytest.approx((low, high))
        widths.append(high - low)
    assert 2 * widths[0] < widths[1] and widths[2] == pytest.approx(widths[1], rel=0.2)


def test_where_all_rollouts_are_equal_the_band_is_a_line() -> None:
    found = played(8, spread=0)
    assert found.metrics["low"] == found.metrics["high"] == found.metrics[METRIC] == 0.5
    assert found.charts[0].bands["model"] == ([0, 0.5, 0.5], [0, 0.5, 0.5])


def test_that_the_band_is_of_one_training_is_said() -> None:
    assert "of this one training" in played(3).meanings["low"]


def test_that_the_sources_returns_contain_its_random_steps_is_said() -> None:
    assert "made at random" in played(3).meanings["source"] and "the model makes none" in played(3).meanings["source"]


@pytest.mark.parametrize("preset", presets_of("algorithm_distillation"))
def test_what_does_not_learn_in_context_ships_with_the_preset_small_alone(preset: str) -> None:
    values = read_params(preset_file("algorithm_distillation", preset))
    limits = validate(DistillationSettings, values, where=preset).publish
    lost, learnt = (score([rollout("a", [0, level, level], 100)], RolloutEvaluate(last=2)).metrics for level in (50, 95))
    assert bool(list(beyond_limits(lost, limits))) == (preset != "small")
    assert not list(beyond_limits(learnt, limits))


def test_no_rollouts_score_nothing() -> None:
    assert score([], RolloutEvaluate()).metrics == {METRIC: 0.0}


def test_more_episodes_than_there_are_cannot_count(tiny: Tiny) -> None:
    evaluate = tiny.settings.evaluate.model_copy(update={"last": 25})
    settings = tiny.settings.model_copy(update={"evaluate": evaluate})
    with pytest.raises(SlipwayError, match=r"evaluate\.last = 25 is more than the 24 episodes of a history"):
        build(settings, tiny.facts)
    with pytest.raises(SlipwayError, match=r"evaluate\.last = 25 is more than the 24 episodes"):
        next(WORKLOAD.measure(lambda *_, **__: {}, tiny.records, settings, tiny.facts))


@pytest.fixture(scope="module")
def run(tiny: Tiny) -> Run:
    learner = build(tiny.settings, tiny.facts).learner
    return torch_run(graphs(learner, tiny.settings.train, tiny.facts), "cpu")


def test_the_gallery_shows_the_first_episodes_and_the_last_step_by_step(tiny: Tiny, run: Run) -> None:
    caption, film = next(WORKLOAD.gallery(run, tiny.records.split("test").take([0]), tiny.settings, tiny.facts))
    assert "in the first episode" in caption and film.dtype == np.uint8 and len(film) == 6 * 21
    moved = [bool((one != other).any()) for one, other in pairwise(film)]
    assert sum(moved) > len(film) / 2  # an agent may also stay where it is


def test_tasks_of_ones_own_are_played_and_drawn(tiny: Tiny, run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"environment": "darkroom", "tasks": [[0, 0], [4, 4]]}))
    (tmp_path / "other.json").write_text("[]")
    found = list(predict(run, WORKLOAD.raw.listed(tmp_path), tiny.settings, tiny.facts))
    assert [one.name for one in found] == ["mine.json/0", "mine.json/1", "other.json"]
    assert found[2].error and found[2].json()["error"] == found[2].error
    value = json.loads(json.dumps(found[1].json()))
    assert value["task"] == [4, 4] and value["optimum"] == 20 and len(value["returns"]) == 24
    assert found[0].draw().ndim == 3


def test_the_task_of_a_record_can_be_played(tiny: Tiny) -> None:
    record = tiny.records.split("test")[0]
    tasks = read_tasks(WORKLOAD.raw_input(record, tiny.records.root), "darkroom")
    assert tasks.tolist() == [record.inputs["task"]]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "not {"),
        ('{"environment": "dark_key_to_door", "tasks": [[1, 1, 1, 1]]}', "tasks of 'dark_key_to_door', and the model"),
        (
            '{"environment": "darkroom", "tasks": [[1, 2], [9, 0]]}',
            r"tasks\[1\]: \[9, 0\] is no task of darkroom; \[8, 8\] is",
        ),
        ('{"environment": "darkroom", "tasks": [[1, 2, 3]]}', r"tasks\[0\]: \[1, 2, 3\] is no task of darkroom"),
        ('{"environment": "darkroom", "tasks": [[8.7, 8]]}', r"tasks\[0\]: \[8.7, 8\] is no task of darkroom"),
        ('{"environment": "darkroom", "tasks": [[true, 8]]}', r"tasks\[0\]: \[True, 8\] is no task of darkroom"),
        ('{"environment": "darkroom", "tasks": [8, 8]}', r"tasks\[0\]: 8 is no task of darkroom"),
        ('{"environment": "darkroom", "tasks": []}', "tasks is empty: there is nothing to play"),
    ],
)
def test_what_is_no_task_is_refused_by_name(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "tasks.json").write_text(content)
    with pytest.raises(SlipwayError, match=told):
        read_tasks(RawInput("tasks.json", tmp_path / "tasks.json"), "darkroom")
