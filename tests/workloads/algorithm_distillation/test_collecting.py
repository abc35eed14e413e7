"""Histories: learnt by something that does not know the task, marked where chance acted, compact, the same after an interruption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from contracts import workload
from contracts.errors import SlipwayError
from tasks import download
from workloads.algorithm_distillation import collecting
from workloads.algorithm_distillation.collecting import chosen_tasks, collect, learn
from workloads.algorithm_distillation.environments import ENVIRONMENTS, Darkroom
from workloads.algorithm_distillation.environments.room import DISTANCE
from workloads.algorithm_distillation.histories import Histories
from workloads.algorithm_distillation.moments import ACTION, PLACE, RANDOM, REWARD, returns
from workloads.algorithm_distillation.settings import HistoryDownload, HistoryParse
from workloads.algorithm_distillation.sources import source_named


def learnt(environment: str, source: str, tasks: np.ndarray, *, episodes: int, noise: float = 0.0) -> np.ndarray:
    rng, kind = np.random.default_rng(0), ENVIRONMENTS[environment]
    return learn(source_named(source)(kind, tasks, rng, episodes=episodes), kind(tasks), rng, episodes=episodes, noise=noise)


def some_tasks(environment: str, num: int) -> np.ndarray:
    tasks = ENVIRONMENTS[environment].tasks()
    return tasks[np.random.default_rng(0).integers(len(tasks), size=num)]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_explorer_learns_every_environment_to_its_optimum(environment: str) -> None:
    tasks = some_tasks(environment, 100)
    shares = returns(learnt(environment, "explorer", tasks, episodes=20)) / ENVIRONMENTS[environment].optimum(tasks)[:, None]
    assert shares[:, 0].mean() < 0.5
    assert shares[:, -1].mean() > 0.98


@pytest.mark.parametrize(("source", "episodes", "share"), [("q_learning", 60, 0.9), ("noisy_optimum", 30, 0.98)])
def test_every_other_source_learns_darkroom_too(source: str, episodes: int, share: float) -> None:
    tasks = some_tasks("darkroom", 100)
    shares = returns(learnt("darkroom", source, tasks, episodes=episodes)) / Darkroom.optimum(tasks)[:, None]
    assert shares[:, 0].mean() < 0.2
    assert shares[:, -1].mean() > share


def test_q_learning_finds_out_what_actions_mean_and_uses_the_key() -> None:
    for environment, episodes, share in (("darkroom_permuted", 100, 0.3), ("dark_key_to_door", 60, 0.7)):
        tasks = some_tasks(environment, 50)
        found = (
            returns(learnt(environment, "q_learning", tasks, episodes=episodes))
            / ENVIRONMENTS[environment].optimum(tasks)[:, None]
        )
        assert found[:, :5].mean() < 0.3 and found[:, -5:].mean() > share


@pytest.mark.parametrize("source", ["explorer", "q_learning"])
def test_a_source_does_the_same_whatever_the_task_until_it_is_rewarded(source: str) -> None:
    near, far = (learnt("darkroom", source, np.array([task] * 50), episodes=3) for task in ((0, 8), (8, 0)))
    before_reward = ~((near[..., REWARD] + far[..., REWARD]).reshape(50, -1).cumsum(1) > 0)
    assert 0.2 < before_reward.mean() < 1
    same = (near[..., PLACE] == far[..., PLACE]).reshape(50, -1)
    rewarded_in_no_row = before_reward.all(1)
    first = before_reward.argmin(1).clip(1) * ~rewarded_in_no_row + before_reward.shape[1] * rewarded_in_no_row
    assert all(same[row, : first.min()].all() for row in range(50))


def test_random_steps_are_marked_and_as_many_as_asked_for() -> None:
    histories = learnt("darkroom", "explorer", some_tasks("darkroom", 200), episodes=5, noise=0.1)
    assert histories[:, :, :-1, RANDOM].mean() == pytest.approx(0.1, abs=0.01)
    assert not histories[:, :, -1, RANDOM].any()


def test_ppo_learns_from_its_own_actions_alone(tmp_path: Path) -> None:
    """It takes what was done for what it did: a step that chance made in its place would be taught as its own."""
    settings = {"source": "ppo", "num_samples": 30, "num_tasks": 3, "episodes": 2}
    collect(tmp_path / "raw", HistoryDownload.model_validate(settings), tmp_path / "store")
    histories = Histories(tmp_path / "raw")
    assert histories.index["noise"] == 0 and not histories.array("part-00000")[..., RANDOM].any()
    with pytest.raises(ValueError, match=r"noise 0\.1: ppo explores by itself.* Leave noise null"):
        HistoryDownload.model_validate({**settings, "noise": 0.1})
    HistoryDownload.model_validate({**settings, "source": "explorer", "noise": 0.1})


def test_the_noisy_optimum_marks_its_own_random_steps_and_means_none_but_good_ones() -> None:
    tasks = some_tasks("darkroom", 200)
    moments = learnt("darkroom", "noisy_optimum", tasks, episodes=5)
    shares = moments[:, :, :-1, RANDOM].mean((0, 2))
    assert shares == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=0.03)
    left = DISTANCE[moments[..., PLACE], Darkroom.targets(tasks)[:, :, None]]
    nearer = (left[:, :, 1:] < left[:, :, :-1]) | (left[:, :, 1:] == 0)
    assert nearer[moments[:, :, :-1, RANDOM] == 0].all() and not nearer.all()


def test_a_history_tells_what_really_happened() -> None:
    tasks = some_tasks("darkroom", 30)
    histories = learnt("darkroom", "explorer", tasks, episodes=3, noise=0.2)
    room = Darkroom(tasks)
    for episode in range(3):
        room.reset()
        for step in range(Darkroom.horizon):
            places, rewards = room.step(histories[:, episode, step, ACTION].astype(np.int64))
            assert np.array_equal(places, histories[:, episode, step + 1, PLACE])
            assert np.array_equal(rewards, histories[:, episode, step + 1, REWARD])


@pytest.mark.parametrize(("source", "num_tasks"), [("explorer", 81), ("ppo", 5)])
def test_an_interrupted_collection_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, num_tasks: int
) -> None:
    monkeypatch.setattr(collecting, "PART", 40)
    monkeypatch.setattr(collecting, "STACKED", 40)
    settings = HistoryDownload.model_validate({"num_samples": 100, "num_tasks": num_tasks, "episodes": 2, "source": source})
    collect(tmp_path / "whole", settings, tmp_path / "store")

    write, written = collecting.write_part, []

    def write_one_and_stop(folder: Path, part: str, *arrays: np.ndarray) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(part)
        write(folder, part, *arrays)

    monkeypatch.setattr(collecting, "write_part", write_one_and_stop)
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "resumed", settings, tmp_path / "other")
    assert not (tmp_path / "resumed").exists()
    monkeypatch.setattr(collecting, "write_part", lambda *given: (written.append(given[1]), write(*given)))
    collect(tmp_path / "resumed", settings, tmp_path / "other")
    assert written == ["part-00000", "part-00001", "part-00002"]
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "resumed" / path.name).read_bytes()


def test_other_code_does_not_go_on_with_what_was_half_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = collecting.fingerprint(HistoryDownload())
    shutil.copytree(workload.ROOT / "workloads", tmp_path / "workloads", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(workload, "ROOT", tmp_path)
    assert collecting.fingerprint(HistoryDownload()) == before
    with (tmp_path / "workloads" / "algorithm_distillation" / "sources" / "explorer.py").open("a") as file:
        file.write("OPTIMISM = (0.4, 0.5)\n")
    assert collecting.fingerprint(HistoryDownload()) != before


def test_what_a_killed_collection_left_half_written_is_no_history(tmp_path: Path) -> None:
    settings = HistoryDownload(num_samples=5, episodes=2)
    left = tmp_path / "store" / collecting.fingerprint(settings) / ".part-00000.npy.99.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    collect(tmp_path / "raw", settings, tmp_path / "store")
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == [
        "histories.json",
        "part-00000.npy",
        "part-00000.rows.npy",
    ]


@pytest.mark.parametrize("part", [1, 9, 20, 1024])
def test_the_streams_of_a_policy_are_all_learners_of_its_task_whatever_a_part_holds(
    monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """How fast PPO learns depends on their number."""
    monkeypatch.setattr(collecting, "STACKED", part)
    parts = collecting.parts_of(HistoryDownload(num_samples=50, source="ppo"), num_tasks=6)
    together = [{(int(task), int((rows[:, 0] == task).sum())) for task in rows[:, 0]} for rows in parts]
    assert sorted(one for some in together for one in some) == [(0, 9), (1, 9), (2, 8), (3, 8), (4, 8), (5, 8)]
    assert all(len(rows) <= max(part, 9) for rows in parts) and len(parts) == {1: 6, 9: 6, 20: 3, 1024: 1}[part]
    apart = collecting.parts_of(HistoryDownload(num_samples=50, source="explorer"), num_tasks=6)
    for found in (parts, apart):
        assert sorted(map(tuple, np.concatenate(found).tolist())) == sorted((one % 6, one // 6) for one in range(50))


def test_every_task_gets_its_share_of_learners_and_a_step_takes_four_bytes(tmp_path: Path) -> None:
    collect(tmp_path / "raw", HistoryDownload(num_samples=162, episodes=2), tmp_path / "store")
    histories = Histories(tmp_path / "raw")
    rows = [row for part in histories.index["parts"] for row in histories.rows(part)]
    assert np.bincount([row.task for row in rows]).tolist() == [2] * 81
    array = histories.array("part-00000")
    assert isinstance(array, np.memmap) and array.nbytes == 162 * 2 * 21 * 4


def test_a_few_tasks_are_a_fair_sample_of_all(tmp_path: Path) -> None:
    collect(tmp_path / "raw", HistoryDownload(num_samples=20, num_tasks=20, episodes=1), tmp_path / "store")
    tasks = np.array(Histories(tmp_path / "raw").index["tasks"])
    assert len(tasks) == 20 and len({*map(tuple, tasks.tolist())}) == 20
    assert len({*tasks[:, 0].tolist()}) > 5  # in the environment's own order they would all have x < 3


def test_of_very_many_tasks_so_few_take_part_that_each_gets_some_learners() -> None:
    """Entropy is counted and rollouts are made on each task: with one learner on each there is nothing to count."""
    told = {}
    for name, kind in ENVIRONMENTS.items():
        settings = HistoryDownload.model_validate({"environment": name})
        num = told[name] = len(chosen_tasks(kind, settings))
        assert settings.num_samples // num >= HistoryParse().rollouts
    assert told == {"darkroom": 81, "darkroom_permuted": 120, "dark_key_to_door": 708}
    all_of_them = HistoryDownload(environment="dark_key_to_door", num_tasks=6561)
    assert len(chosen_tasks(ENVIRONMENTS["dark_key_to_door"], all_of_them)) == 6561
    assert len(chosen_tasks(ENVIRONMENTS["dark_key_to_door"], HistoryDownload(num_samples=100))) == 120


def test_more_tasks_than_there_are_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SlipwayError, match=r"download\.num_tasks = 82 is more than the 81 tasks of darkroom"):
        collect(tmp_path / "raw", HistoryDownload(num_tasks=82), tmp_path / "store")


def test_histories_that_are_others_than_the_settings_say_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the door, by the values that are set; one that is not set is the histories' own to say."""
    collect(tmp_path / "theirs", HistoryDownload(num_samples=5, episodes=2), tmp_path / "store")
    monkeypatch.chdir(tmp_path)

    def bring(**said: object) -> None:
        told = {"download": {"sources": ["theirs"], **said}}
        Path("params.yaml").write_text(json.dumps({"algorithm_distillation": told}), encoding="utf-8")
        download.run("algorithm_distillation")

    with pytest.raises(
        SlipwayError,
        match=r"environment = 'dark_key_to_door', theirs is 'darkroom'; episodes = 24, theirs is 2; noise = 0\.2, ",
    ):
        bring(environment="dark_key_to_door", source="explorer", episodes=24, noise=0.2)
    assert not Path("data/download/algorithm_distillation").exists()
    bring(environment="darkroom", episodes=2)
    bring()
    assert Histories(Path("data/download/algorithm_distillation/raw")).index["episodes"] == 2


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda raw: (raw / "histories.json").unlink(), "histories.json is missing"),
        (lambda raw: (raw / "part-00000.npy").unlink(), "part-00000.npy cannot be read"),
        (lambda raw: np.save(raw / "part-00000.npy", np.zeros((3, 3))), "holds float64"),
        (lambda raw: (raw / "histories.json").write_text("{}"), "lacks environment"),
    ],
)
def test_what_is_no_histories_is_refused_by_name(tmp_path: Path, spoil: object, told: str) -> None:
    collect(tmp_path / "raw", HistoryDownload(num_samples=5, episodes=2), tmp_path / "store")
    spoil(tmp_path / "raw")  # pyright: ignore
    with pytest.raises(SlipwayError, match=told):
        Histories(tmp_path / "raw").array("part-00000")
