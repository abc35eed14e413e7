"""DarkroomPermuted: start in one corner, the goal in the opposite one; which action moves where is the task."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from workloads.algorithm_distillation.environments.room import DISTANCE, NUM_ACTIONS, SIZE, Room, cell


class DarkroomPermuted(Room):
    """A task says for each action the move it makes: 120 of them."""

    name = "darkroom_permuted"
    horizon = 20
    actions_are_moves = False
    start = int(cell(0, 0))
    goal = int(cell(SIZE - 1, SIZE - 1))

    @classmethod
    def tasks(cls) -> np.ndarray:
        return np.array(list(permutations(range(NUM_ACTIONS))))

    @classmethod
    def targets(cls, tasks: np.ndarray) -> np.ndarray:
        return np.full((len(tasks), 1), cls.goal)

    @classmethod
    def meanings(cls, tasks: np.ndarray) -> np.ndarray:
        return tasks

    @classmethod
    def difficulty(cls, tasks: np.ndarray) -> np.ndarray:
        """How many actions do something else than in Darkroom: the goal is equally far in all."""
        return (tasks != np.arange(NUM_ACTIONS)).sum(1)

    @classmethod
    def optimum(cls, tasks: np.ndarray) -> np.ndarray:
        return np.full(len(tasks), cls.horizon + 1 - DISTANCE[cls.start, cls.goal])

    def reward(self) -> np.ndarray:
        return (self.places == self.goal).astype(np.int64)
