"""Darkroom: start at the centre; each step on the goal, a cell that is the task, is rewarded."""

from __future__ import annotations

import numpy as np

from workloads.algorithm_distillation.environments.room import DISTANCE, NUM_CELLS, SIZE, Room, cell, coordinates


class Darkroom(Room):
    """A task is the goal's (x, y): 81 of them."""

    name = "darkroom"
    horizon = 20
    start = int(cell(SIZE // 2, SIZE // 2))

    def __init__(self, tasks: np.ndarray) -> None:
        super().__init__(tasks)
        self.goals = self.targets(self.task)[:, 0]

    @classmethod
    def tasks(cls) -> np.ndarray:
        return coordinates(np.arange(NUM_CELLS))

    @classmethod
    def targets(cls, tasks: np.ndarray) -> np.ndarray:
        return cell(tasks[:, :1], tasks[:, 1:])

    @classmethod
    def difficulty(cls, tasks: np.ndarray) -> np.ndarray:
        return DISTANCE[cls.start, cls.targets(tasks)[:, 0]]

    @classmethod
    def optimum(cls, tasks: np.ndarray) -> np.ndarray:
        """The reward comes with the step that reaches the goal, so at the centre itself it is the horizon, not one more."""
        return np.minimum(cls.horizon + 1 - cls.difficulty(tasks), cls.horizon)

    def reward(self) -> np.ndarray:
        return (self.places == self.goals).astype(np.int64)
