"""The original's HDF5 files are read as they are, and what is wrong with a group is said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import tasks.parse
from contracts.errors import SlipwayError
from contracts.files import read_json
from contracts.records import Record, Records, Rejected, write_records
from contracts.workload import load
from workloads.algorithm_distillation import WORKLOAD
from workloads.algorithm_distillation.collecting import learn
from workloads.algorithm_distillation.environments import Darkroom
from workloads.algorithm_distillation.environments.room import coordinates
from workloads.algorithm_distillation.histories import Histories
from workloads.algorithm_distillation.moments import ACTION, PLACE, REWARD
from workloads.algorithm_distillation.sources import source_named

NAME = "history_darkroom_PPO_alg-seed0.hdf5"


def learnt(goal: tuple[int, int], *, streams: int = 4, episodes: int = 8) -> np.ndarray:
    tasks, rng = np.array([goal] * streams), np.random.default_rng(sum(goal))
    source = source_named("explorer")(Darkroom, tasks, rng, episodes=episodes)
    return learn(source, Darkroom(tasks), rng, episodes=episodes, noise=0)


def write(path: Path, groups: dict[str, np.ndarray], *, extra_steps: int = 0, reset: bool = True) -> None:
    """Our histories as the original would have written them: where an episode ends, with the observation after the reset."""
    with h5py.File(path, "w") as file:
        for name, history in groups.items():
            streams = len(history)

            def by_step(values: np.ndarray, streams: int = streams) -> np.ndarray:
                flat = values.reshape(streams, -1, *values.shape[3:]).swapaxes(0, 1)
                return np.concatenate([flat, flat[:extra_steps]])

            group = file.create_group(name)
            group["states"] = by_step(coordinates(history[:, :, :-1, PLACE].astype(int)))
            after = history[:, :, 1:, PLACE].astype(int)
            after[..., -1] = Darkroom.start if reset else after[..., -1]
            group["next_states"] = by_step(coordinates(after))
            group["actions"], group["rewards"] = by_step(history[:, :, :-1, ACTION]), by_step(history[:, :, 1:, REWARD])
            dones = np.zeros((streams, history.shape[1], Darkroom.horizon), bool)
            dones[..., -1] = True
            group["dones"] = by_step(dones)


def untrained_loss(batch: dict[str, Any], settings: Any, facts: dict[str, Any], *, seed: int) -> float:
    """The loss of one untrained model; those of several are near the logarithm of the number of actions on average."""
    torch.manual_seed(seed)
    return float(WORKLOAD.build(settings, facts, pretrained=False)(batch)["loss"].detach())


@pytest.mark.parametrize("reset", [True, False])
def test_a_file_of_the_original_gives_the_histories_that_were_written(tmp_path: Path, reset: bool) -> None:
    """Also where Stable-Baselines3 put the observation after the reset at the end of episodes that end on the goal."""
    histories = {"0": learnt((3, 3)), "1": learnt((6, 4)), "10": learnt((2, 5))}
    assert any(history[:, :, -1, REWARD].any() for history in histories.values())
    write(tmp_path / NAME, histories, extra_steps=7, reset=reset)
    found = Histories(tmp_path)
    assert found.index["environment"] == "darkroom" and found.index["source"] == "ppo" and found.index["episodes"] == 8
    assert found.index["tasks"] == [[3, 3], [6, 4], [2, 5]]
    for name, history in histories.items():
        read = found.array(f"{NAME}:{name}")
        assert np.array_equal(read[:, :, :, :2], history[:, :, :, :2]) and np.array_equal(
            read[..., ACTION], history[..., ACTION]
        )


def test_they_are_parsed_and_a_group_without_rewards_is_quarantined(tmp_path: Path) -> None:
    lost = learnt((3, 3))
    lost[..., REWARD] = 0
    write(tmp_path / NAME, {**{str(x): learnt((x, 4)) for x in range(9)}, "lost": lost})
    settings = WORKLOAD.Settings.model_validate({"parse": {"shares": [0.6, 0.2, 0.2], "rollouts": 2}})
    found = list(WORKLOAD.parse(tmp_path, settings, processes=1))
    refused = [one for one in found if isinstance(one, Rejected)]
    assert [(one.file, one.row, one.reason) for one in refused] == [
        (NAME, "lost", "it was never rewarded, so its goal is not known")
    ]
    records = [one for one in found if isinstance(one, Record)]
    assert len({one.group for one in records}) == 9 and {one.split for one in records} == {"train", "val", "test"}
    assert len(records) == 5 * 4 + 4 * 2


def test_what_is_read_of_them_is_trained_on(tmp_path: Path) -> None:
    """Through the stage: facts, and batches of records from the file, with the source's actions as labels."""
    (tmp_path / "raw").mkdir()
    histories = {str(x): learnt((x, 4), episodes=20) for x in range(9)}
    write(tmp_path / "raw" / NAME, histories)
    settings = WORKLOAD.Settings.model_validate({"parse": {"shares": [0.6, 0.2, 0.2]}, "evaluate": {"last": 2}})
    tasks.parse.parse(load("algorithm_distillation"), settings, tmp_path / "raw", tmp_path / "parse", processes=1)
    facts = read_json(tmp_path / "parse" / "facts.json")
    assert (facts["environment"], facts["source"], facts["episodes"]) == ("darkroom", "ppo", 20)
    train = Records.open(tmp_path / "parse", root=tmp_path / "raw").split("train")
    dataset = WORKLOAD.dataset(train, settings, facts, training=True)
    batch = dataset.collate([dataset.item(row, None, draw=0, progress=0) for row in range(len(train))])
    wanted = [histories[row.inputs["part"].rpartition(":")[2]][row.inputs["row"], :, :-1, ACTION] for row in train]
    assert np.array_equal(batch["labels"].reshape(len(train), 20, 21)[:, :, :-1], wanted)
    assert np.mean([untrained_loss(batch, settings, facts, seed=seed) for seed in range(8)]) == pytest.approx(
        np.log(5), abs=0.1
    )


def test_files_of_several_seeds_have_learners_of_their_own_on_the_same_tasks(tmp_path: Path) -> None:
    for seed in (0, 1):
        write(tmp_path / f"history_darkroom_PPO_alg-seed{seed}.hdf5", {str(x): learnt((x, 4)) for x in range(9)})
    settings = WORKLOAD.Settings.model_validate({"parse": {"shares": [0.6, 0.2, 0.2], "rollouts": 6}})
    records = [one for one in WORKLOAD.parse(tmp_path, settings, processes=1) if isinstance(one, Record)]
    assert len({one.key for one in records}) == len(records) == 5 * 8 + 4 * 6
    assert sorted(one.key for one in records if one.group == "darkroom/4-4")[-1] in ("darkroom/4-4/5", "darkroom/4-4/7")
    inputs, targets = WORKLOAD.schema()
    write_records(tmp_path / "parse", records, inputs=inputs, targets=targets, shares=settings.parse.shares)


def test_a_group_of_another_length_is_quarantined(tmp_path: Path) -> None:
    write(tmp_path / NAME, {"0": learnt((3, 3)), "1": learnt((5, 5), episodes=5), "2": learnt((6, 4), streams=2)})
    found = Histories(tmp_path)
    assert found.unusable == {f"{NAME}:1": "another number of episodes: 5, the first group has 8"}
    assert [len(list(found.rows(part))) for part in found.index["parts"]] == [4, 2]


def test_where_no_group_can_be_used_all_are_quarantined(tmp_path: Path) -> None:
    lost = learnt((3, 3))
    lost[..., REWARD] = 0
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw" / NAME, {"0": lost, "1": lost})
    with pytest.raises(SlipwayError, match=r"can be used: 2 it was never rewarded.*quarantine\.csv"):
        tasks.parse.parse(
            load("algorithm_distillation"), WORKLOAD.Settings(), tmp_path / "raw", tmp_path / "parse", processes=1
        )


@pytest.mark.parametrize(
    ("field", "at", "value", "told"),
    [
        ("next_states", (7, 1, 0), 300, "next_states that Darkroom does not have: 300"),
        ("states", (7, 1, 0), -1, "states that Darkroom does not have: -1"),
        ("actions", (7, 1), 5, "actions that Darkroom does not have: 5"),
        ("rewards", (7, 1), 3, "rewards that Darkroom does not have: 3"),
        ("dones", (19, 1), False, "its episodes do not end after 20 steps each"),
        ("next_states", (7, 1), (0, 8), r"its next_states are not where .*stream 1, episode 0, step 7: from .* to \[0, 8\]"),
        ("states", (28, 2), (0, 8), r"its (next_)?states are not where .*stream 2, episode 1, step [78]:"),
    ],
)
def test_a_group_that_tells_what_cannot_happen_is_quarantined(
    tmp_path: Path, field: str, at: tuple[int, ...], value: object, told: str
) -> None:
    write(tmp_path / NAME, {"0": learnt((3, 3)), "1": learnt((5, 5))})
    with h5py.File(tmp_path / NAME, "a") as file:
        group: Any = file["1"]
        group[field][at] = value
    reason = Histories(tmp_path).unusable[f"{NAME}:1"]
    assert re.search(told, reason), reason


def test_fields_of_other_lengths_are_named(tmp_path: Path) -> None:
    write(tmp_path / NAME, {"0": learnt((3, 3)), "1": learnt((5, 5))})
    with h5py.File(tmp_path / NAME, "a") as file:
        group: Any = file["1"]
        rewards = group["rewards"][:-3]
        del group["rewards"]
        group["rewards"] = rewards
    assert Histories(tmp_path).unusable == {
        f"{NAME}:1": "its fields do not fit together: rewards are [157, 4], actions [160, 4]"
    }


def test_other_environments_and_broken_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"no HDF5")
    with pytest.raises(SlipwayError, match=f"{NAME} cannot be read as HDF5"):
        _ = Histories(tmp_path).index
    (tmp_path / NAME).unlink()
    write(tmp_path / "history_dark_key_to_door_PPO_alg-seed0.hdf5", {"0": learnt((3, 3))})
    with pytest.raises(
        SlipwayError, match="histories of 'dark_key_to_door'; of the original's files those of darkroom are read"
    ):
        _ = Histories(tmp_path).index


def test_a_group_that_lacks_something_says_what(tmp_path: Path) -> None:
    write(tmp_path / NAME, {"0": learnt((3, 3)), "1": learnt((5, 5))})
    with h5py.File(tmp_path / NAME, "a") as file:
        del file["1/dones"]
    assert Histories(tmp_path).unusable == {f"{NAME}:1": "it lacks dones"}
