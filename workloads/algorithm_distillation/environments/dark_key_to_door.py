"""DarkKeyToDoor: first the key has to be stepped on, then the door; each is rewarded once an episode."""

from __future__ import annotations

import numpy as np

from workloads.algorithm_distillation.environments.room import DISTANCE, NUM_CELLS, SIZE, Room, cell, coordinates


class DarkKeyToDoor(Room):
    """A task is the key's (x, y) and the door's: 9^4 of them. Both may be one cell, which then gives both rewards at once."""

    name = "dark_key_to_door"
    horizon = 50
    start = int(cell(SIZE // 2, SIZE // 2))
    num_stages = 3  # without the key, with it, and with the door behind one
    num_rewards = 3

    def __init__(self, tasks: np.ndarray) -> None:
        super().__init__(tasks)
        self.keys, self.doors, _ = self.targets(self.task).T

    @classmethod
    def tasks(cls) -> np.ndarray:
        keys, doors = np.divmod(np.arange(NUM_CELLS**2), NUM_CELLS)
        return np.concatenate([coordinates(keys), coordinates(doors)], axis=1)

    @classmethod
    def targets(cls, tasks: np.ndarray) -> np.ndarray:
        """With the door behind one, nothing is rewarded any more: one stays at it."""
        keys, doors = cell(tasks[:, 0], tasks[:, 1]), cell(tasks[:, 2], tasks[:, 3])
        return np.stack([keys, doors, doors], axis=1)

    @classmethod
    def difficulty(cls, tasks: np.ndarray) -> np.ndarray:
        keys, doors, _ = cls.targets(tasks).T
        return DISTANCE[cls.start, keys] + DISTANCE[keys, doors]

    @classmethod
    def optimum(cls, tasks: np.ndarray) -> np.ndarray:
        """Key and door: no way is longer than 24 steps."""
        return np.full(len(tasks), 2)

    def reward(self) -> np.ndarray:
        found_key = (self.stages == 0) & (self.places == self.keys)
        self.stages = self.stages + found_key
        found_door = (self.stages == 1) & (self.places == self.doors)
        self.stages = self.stages + found_door
        return found_key.astype(np.int64) + found_door
