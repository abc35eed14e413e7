"""The rooms are what the literature says they are."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from contracts.errors import SlipwayError
from tests.conftest import ROOT
from workloads.algorithm_distillation.environments import ENVIRONMENTS, DarkKeyToDoor, Darkroom, DarkroomPermuted
from workloads.algorithm_distillation.environments.registered import GymnasiumRoom
from workloads.algorithm_distillation.environments.room import MOVES, NUM_ACTIONS, Room, cell, coordinates

GUIDE = ROOT / "docs" / "workloads" / "algorithm_distillation.md"


def best_return(kind: type[Room], task: np.ndarray, steps: int) -> int:
    """By trying every action at every place and stage, step by step."""
    reached = {(kind.start, 0): 0}
    for _ in range(steps):
        after: dict[tuple[int, int], int] = {}
        for (place, stage), so_far in reached.items():
            room = kind(np.repeat(task[None], NUM_ACTIONS, axis=0))
            room.places, room.stages = np.full(NUM_ACTIONS, place), np.full(NUM_ACTIONS, stage)
            places, rewards = room.step(np.arange(NUM_ACTIONS))
            for state, reward in zip(zip(places.tolist(), room.stages.tolist(), strict=True), rewards.tolist(), strict=True):
                after[state] = max(after.get(state, 0), so_far + reward)
        reached = after
    return max(reached.values())


@pytest.mark.parametrize("task", [(4, 4), (0, 0), (5, 4), (8, 0), (2, 7)])
def test_the_optimum_of_darkroom_is_what_no_sequence_of_actions_surpasses(task: tuple[int, int]) -> None:
    found = best_return(Darkroom, np.array(task), Darkroom.horizon)
    assert found == Darkroom.optimum(np.array([task]))[0]


def test_the_optimum_at_the_centre_is_the_horizon_and_not_one_more() -> None:
    assert Darkroom.optimum(np.array([[4, 4], [5, 4], [8, 8]])).tolist() == [20, 20, 13]


def test_the_optimum_of_a_permuted_room_needs_the_permutation() -> None:
    task = np.array([3, 2, 4, 0, 1])
    assert best_return(DarkroomPermuted, task, 20) == DarkroomPermuted.optimum(task[None])[0] == 5


def test_there_are_as_many_tasks_as_the_facts_say() -> None:
    counts = {name: (len(kind.tasks()), len({*map(tuple, kind.tasks().tolist())})) for name, kind in ENVIRONMENTS.items()}
    assert counts == {"darkroom": (81, 81), "darkroom_permuted": (120, 120), "dark_key_to_door": (9**4, 9**4)}
    assert [kind.horizon for kind in ENVIRONMENTS.values()] == [20, 20, 50]


def test_the_actions_go_right_left_up_down_and_nowhere() -> None:
    room = Darkroom(np.array([[0, 0]] * 5))
    assert coordinates(room.step(np.arange(5))[0]).tolist() == [[5, 4], [3, 4], [4, 5], [4, 3], [4, 4]]


def test_a_permuted_room_begins_in_one_corner_and_rewards_the_opposite_one() -> None:
    room = DarkroomPermuted(np.array([[0, 1, 2, 3, 4]]))
    places, rewards = zip(*(room.step(np.array([action])) for action in [0] * 8 + [2] * 8), strict=True)
    assert coordinates(room.reset()).tolist() == [[0, 0]]
    assert coordinates(places[-1]).tolist() == [[8, 8]] and [int(one[0]) for one in rewards] == [0] * 15 + [1]


def test_walls_hold_back_and_every_step_on_the_goal_is_rewarded() -> None:
    room = Darkroom(np.array([[8, 4]]))
    rewards = [int(room.step(np.array([0]))[1][0]) for _ in range(6)]
    assert rewards == [0, 0, 0, 1, 1, 1]
    assert coordinates(room.places).tolist() == [[8, 4]]


def test_actions_mean_what_the_permutation_says() -> None:
    tasks = DarkroomPermuted.tasks()
    for action in range(NUM_ACTIONS):
        room = DarkroomPermuted(tasks)
        room.places = np.full(len(tasks), int(cell(4, 4)))
        places, _ = room.step(np.full(len(tasks), action))
        assert np.array_equal(coordinates(places) - 4, MOVES[tasks[:, action]])


def test_the_door_opens_with_the_key_alone_and_each_is_rewarded_once() -> None:
    room = DarkKeyToDoor(np.array([[5, 4, 3, 4]]))
    way = [1, 0, 0, 4, 1, 1, 4]  # the door, back, the key, stay, back, the door, stay
    assert [int(room.step(np.array([action]))[1][0]) for action in way] == [0, 0, 1, 0, 0, 1, 0]
    room.reset()
    assert int(room.step(np.array([0]))[1][0]) == 1


def test_key_and_door_in_one_cell_give_both_rewards_at_once() -> None:
    room = DarkKeyToDoor(np.array([[5, 4, 5, 4]]))
    assert room.step(np.array([0]))[1].tolist() == [2]


def test_no_way_through_key_and_door_is_longer_than_the_horizon() -> None:
    assert DarkKeyToDoor.difficulty(DarkKeyToDoor.tasks()).max() == 24 <= DarkKeyToDoor.horizon


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_rooms_side_by_side_do_what_each_does_alone(name: str) -> None:
    kind, rng = ENVIRONMENTS[name], np.random.default_rng(0)
    tasks = kind.tasks()[rng.integers(len(kind.tasks()), size=7)]
    actions = rng.integers(NUM_ACTIONS, size=(kind.horizon, 7))
    together = kind(tasks)
    alone = [kind(task[None]) for task in tasks]
    for step, number in product(range(kind.horizon), range(7)):
        if number == 0:
            places, rewards = together.step(actions[step])
        place, reward = alone[number].step(actions[step, number : number + 1])
        assert (place[0], reward[0]) == (places[number], rewards[number])


@pytest.mark.parametrize("name", ["Darkroom", "DarkroomPermuted", "DarkKeyToDoor"])
def test_gymnasium_finds_nothing_wrong(name: str) -> None:
    made = gymnasium.make(f"slipway/{name}-v0")
    assert isinstance(made.unwrapped, GymnasiumRoom)
    check_env(made.unwrapped, skip_render_check=True)
    made.reset(seed=0)
    ends = [made.step(made.action_space.sample())[2:4] for _ in range(ENVIRONMENTS_BY_CLASS[name].horizon)]
    assert ends[-1] == (False, True) and not any(truncated for _, truncated in ends[:-1])


@pytest.mark.parametrize(
    ("name", "task"),
    [("Darkroom", (0, 9)), ("Darkroom", (0.5, 8)), ("Darkroom", (1, 1, 1, 1)), ("DarkroomPermuted", (0,) * 5)],
)
def test_gymnasium_gets_no_room_for_a_task_that_does_not_exist(name: str, task: tuple[float, ...]) -> None:
    """(0, 9) would be the cell of (1, 0)."""
    with pytest.raises(SlipwayError, match=re.escape(f"{[*task]} is no task of {ENVIRONMENTS_BY_CLASS[name].name}; [")):
        gymnasium.make(f"slipway/{name}-v0", task=task)
    assert gymnasium.make("slipway/Darkroom-v0", task=np.array([0, 8])).reset(seed=0)[1]["task"].tolist() == [0, 8]


def test_gymnasium_makes_a_room_of_which_it_is_told_the_module_alone(tmp_path: Path) -> None:
    """Since 1.0 it asks no installed package what environments it has."""
    [place] = re.findall(r'"([\w.]+:slipway/Darkroom-v0)"', GUIDE.read_text(encoding="utf-8"))
    code = f"import gymnasium; print(gymnasium.make({place!r}, task=(8, 8)).reset(seed=0))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    assert told.stdout.startswith("(array([4, 4])")


ENVIRONMENTS_BY_CLASS = {kind.__name__: kind for kind in ENVIRONMENTS.values()}
