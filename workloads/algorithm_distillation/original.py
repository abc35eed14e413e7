"""Histories as the original project kept them: an HDF5 file a run of PPO, a group a goal, a column a stream."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from contracts.errors import SlipwayError
from workloads.algorithm_distillation.environments import Darkroom
from workloads.algorithm_distillation.environments.room import SIZE, cell, coordinates
from workloads.algorithm_distillation.moments import ACTION, PLACE, REWARD, empty

NAME = re.compile(r"history_(?P<environment>.+)_(?P<source>[^_]+)_alg-seed(?P<seed>\d+)\.(hdf5|h5)$")
FIELDS = ("states", "actions", "rewards", "next_states", "dones")


def files(folder: Path) -> list[Path]:
    """The original's files in a folder and those below it, sorted."""
    return sorted(path for path in folder.rglob("*") if NAME.match(path.name))


def index_of(folder: Path, paths: list[Path]) -> dict[str, Any]:
    """What histories.json would say of these files; `unusable` says of groups why they are left out.

    The goal does not stand in a file: it is where the rewards were. A group that was never rewarded has none.

    Raises:
        SlipwayError: for another environment than Darkroom, or when a file cannot be read.
    """
    tasks: list[list[int]] = []
    parts: list[str] = []
    part_tasks: list[int] = []
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
                goal, length = look(path, group)
            except ValueError as error:
                unusable[name] = str(error)
                continue
            if episodes and length != episodes:
                unusable[name] = f"it has {length} episodes, the first group has {episodes}"
                continue
            episodes = length
            if goal not in tasks:
                tasks.append(goal)
            parts.append(name)
            part_tasks.append(tasks.index(goal))
    source = {NAME.match(path.name)["source"].lower() for path in paths}  # pyright: ignore[reportOptionalSubscript]
    told = {"environment": Darkroom.name, "source": "+".join(sorted(source)), "episodes": episodes, "noise": 0.0}
    return {**told, "tasks": tasks, "parts": parts, "part_tasks": part_tasks, "unusable": unusable}


def groups(path: Path) -> list[str]:
    """The groups of a file that hold histories."""
    import h5py

    try:
        with h5py.File(path) as file:
            return sorted(name for name, group in file.items() if isinstance(group, h5py.Group))
    except OSError as error:
        raise SlipwayError(f"{path} cannot be read as HDF5 ({error}): download it again") from None


def look(path: Path, group: str) -> tuple[list[int], int]:
    """The goal and the number of episodes of a group.

    Raises:
        ValueError: when it is not what it should be; says why.
    """
    history = array_of(path, group)
    rewarded = np.unique(history[..., PLACE][history[..., REWARD] > 0])
    if len(rewarded) != 1:
        raise ValueError(
            "it was never rewarded, so its goal is not known" if not len(rewarded) else "rewards in several cells"
        )
    return coordinates(rewarded)[0].tolist(), history.shape[1]


def array_of(path: Path, group: str) -> np.ndarray:
    """The histories of a group, uint8 [streams, episodes, horizon + 1, 4]; steps after the last whole episode are left out.

    Raises:
        ValueError: when fields are missing, of other shapes, out of range, or episodes do not end after the horizon.
    """
    import h5py

    with h5py.File(path) as file:
        stored: Any = file[group]
        if missing := [name for name in FIELDS if name not in stored]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        states, actions, rewards, after, dones = (np.asarray(stored[name]) for name in FIELDS)
    if states.ndim != 3 or states.shape[2] != 2 or after.shape != states.shape or actions.shape != states.shape[:2]:
        raise ValueError(
            f"states are {list(states.shape)} and actions {list(actions.shape)}, not [steps, streams, 2] and [steps, streams]"
        )
    horizon = Darkroom.horizon
    num = len(states) // horizon
    if not num or not dones[: num * horizon].reshape(num, horizon, -1)[:, -1].all():
        raise ValueError(f"its episodes do not end after {horizon} steps each")
    if states.min() < 0 or states.max() >= SIZE or actions.min() < 0 or actions.max() > 4:
        raise ValueError("it has places or actions that Darkroom does not have")

    def by_episode(values: np.ndarray) -> np.ndarray:
        """[steps, streams] as [streams, episodes, horizon]."""
        return values[: num * horizon].reshape(num, horizon, -1).transpose(2, 0, 1)

    history = empty(states.shape[1], episodes=num, horizon=horizon)
    history[:, :, :-1, PLACE] = by_episode(cell(states[..., 0].astype(int), states[..., 1].astype(int)))
    history[:, :, 1:, PLACE] = by_episode(cell(after[..., 0].astype(int), after[..., 1].astype(int)))
    history[:, :, :-1, ACTION], history[:, :, 1:, REWARD] = by_episode(actions), by_episode(rewards)
    return history
