"""Histories as the original project kept them: an HDF5 file a run of PPO, a group a goal, a column a stream."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from contracts.errors import SlipwayError
from workloads.algorithm_distillation.environments import Darkroom
from workloads.algorithm_distillation.environments.room import NEXT, NUM_ACTIONS, SIZE, cell, coordinates
from workloads.algorithm_distillation.moments import ACTION, PLACE, REWARD, empty

NAME = re.compile(r"history_(?P<environment>.+)_(?P<source>[^_]+)_alg-seed(?P<seed>\d+)\.(hdf5|h5)$")
# The fields of a group, and how many values, from 0 on, each may have.
NUM_VALUES = {"states": SIZE, "actions": NUM_ACTIONS, "rewards": Darkroom.num_rewards, "next_states": SIZE, "dones": 2}


def files(folder: Path) -> list[Path]:
    """The original's files in a folder and those below it, sorted."""
    return sorted(path for path in folder.rglob("*") if NAME.match(path.name))


def index_of(folder: Path, paths: list[Path]) -> dict[str, Any]:
    """What histories.json would say of these files; `unusable` says of groups why they are left out.

    The goal does not stand in a file: it is where the rewards were. A group that was never rewarded has none. `spans` says of
    each part its task, the number of its first learner and how many it has: files of several seeds have the same tasks.

    Raises:
        SlipwayError: for another environment than Darkroom, or when a file cannot be read.
    """
    tasks: list[list[int]] = []
    spans: dict[str, tuple[int, int, int]] = {}
    learners: Counter[int] = Counter()
    unusable: dict[str, str] = {}
    episodes = 0
    for path in paths:
        found = NAME.match(path.name)
        assert found
        if found["environment"].lower() != Darkroom.name:
            raise SlipwayError(
                f"{path}: histories of {found['environment']!r}; of the original's files those of darkroom are read"
            )
        for group in groups(path):
            name = f"{path.relative_to(folder).as_posix()}:{group}"
            try:
                goal, streams, length = look(path, group)
            except ValueError as error:
                unusable[name] = str(error)
                continue
            if episodes and length != episodes:
                unusable[name] = f"another number of episodes: {length}, the first group has {episodes}"
                continue
            episodes = length
            if goal not in tasks:
                tasks.append(goal)
            task = tasks.index(goal)
            spans[name] = task, learners[task], streams
            learners[task] += streams
    source = {NAME.match(path.name)["source"].lower() for path in paths}  # pyright: ignore[reportOptionalSubscript]
    told = {"environment": Darkroom.name, "source": "+".join(sorted(source)), "episodes": episodes, "noise": 0.0}
    return {**told, "tasks": tasks, "parts": list(spans), "spans": spans, "unusable": unusable}


def groups(path: Path) -> list[str]:
    """The groups of a file that hold histories."""
    import h5py

    try:
        with h5py.File(path) as file:
            return sorted(name for name, group in file.items() if isinstance(group, h5py.Group))
    except OSError as error:
        raise SlipwayError(f"{path} cannot be read as HDF5 ({error}): download it again") from None


def look(path: Path, group: str) -> tuple[list[int], int, int]:
    """The goal, the number of streams and that of episodes of a group.

    Raises:
        ValueError: when it is not what it should be; says why.
    """
    history = array_of(path, group)
    rewarded = np.unique(history[..., PLACE][history[..., REWARD] > 0])
    if len(rewarded) != 1:
        raise ValueError(
            "it was never rewarded, so its goal is not known" if not len(rewarded) else "rewards in several cells"
        )
    return coordinates(rewarded)[0].tolist(), *history.shape[:2]


def array_of(path: Path, group: str) -> np.ndarray:
    """The histories of a group, uint8 [streams, episodes, horizon + 1, 4]; steps after the last whole episode are left out.

    Where an episode ends, Stable-Baselines3 gives the first observation of the next one: that place is taken from the step
    itself, and what `next_states` says there does not count.

    Raises:
        ValueError: when fields are missing, of other shapes, out of range, or do not tell what happens in Darkroom.
    """
    found = fields_of(path, group)
    horizon = Darkroom.horizon
    num, streams = len(found["actions"]) // horizon, found["actions"].shape[1]
    by_episode = {
        name: values[: num * horizon].reshape(num, horizon, streams).transpose(2, 0, 1) for name, values in found.items()
    }
    if not num or not by_episode["dones"][..., -1].all():
        raise ValueError(f"its episodes do not end after {horizon} steps each")
    places, actions = by_episode["states"], by_episode["actions"]
    reached = NEXT[places, actions]
    for name, told in (("next_states", by_episode["next_states"][..., :-1]), ("states", places[..., 1:])):
        if (wrong := np.argwhere(told != reached[..., :-1])).size:
            stream, episode, step = at = tuple(wrong[0].tolist())
            raise ValueError(
                f"its {name} are not where Darkroom's actions lead (+x, -x, +y, -y, stay): stream {stream}, episode {episode}, "
                f"step {step}: from {coordinates(places[at]).tolist()} by action {actions[at]} to {coordinates(told[at]).tolist()}"
            )
    history = empty(streams, episodes=num, horizon=horizon)
    history[:, :, 0, PLACE], history[:, :, 1:, PLACE] = places[..., 0], reached
    history[:, :, :-1, ACTION], history[:, :, 1:, REWARD] = actions, by_episode["rewards"]
    return history


def fields_of(path: Path, group: str) -> dict[str, np.ndarray]:
    """The fields of a group, int64 [steps, streams] each; places as the numbers of their cells.

    Raises:
        ValueError: when one is missing, of another shape, or holds what Darkroom does not have.
    """
    import h5py

    with h5py.File(path) as file:
        stored: Any = file[group]
        if missing := [name for name in NUM_VALUES if name not in stored]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        found = {name: np.asarray(stored[name]) for name in NUM_VALUES}
    steps = found["actions"].shape
    for name, values in found.items():
        if len(steps) != 2 or values.shape != ((*steps, 2) if name in ("states", "next_states") else steps):
            raise ValueError(f"its fields do not fit together: {name} are {list(values.shape)}, actions {list(steps)}")
        wrong = np.setdiff1d(values, np.arange(NUM_VALUES[name]))
        if len(wrong):
            raise ValueError(f"it has {name} that Darkroom does not have: {wrong[0]}")
    whole = {name: values.astype(np.int64) for name, values in found.items()}
    return {name: cell(values[..., 0], values[..., 1]) if values.ndim == 3 else values for name, values in whole.items()}
