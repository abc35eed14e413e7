"""The model-based explorer: knows how one moves and not what is rewarded, and is optimistic about cells it has not seen."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from workloads.algorithm_distillation.environments.room import (
    DISTANCE,
    NEXT,
    NUM_ACTIONS,
    NUM_CELLS,
    Room,
    move_towards,
)

# What a learner expects of a cell it has not stood on, in rewards a step; drawn for each.
OPTIMISM = (0.2, 0.5)
MEANINGS = np.array(list(permutations(range(NUM_ACTIONS))))


class Explorer:
    """Goes to the cell that promises most until the end of the episode, and there stays.

    It knows that each action makes another move, and where that is the task not which: it then takes the action that makes
    the wanted move under most of the assignments that are left.
    """

    def __init__(self, environment: type[Room], tasks: np.ndarray, rng: np.random.Generator, *, episodes: int) -> None:
        num = len(tasks)
        self.rng, self.rows = rng, np.arange(num)
        self.optimism = rng.uniform(*OPTIMISM, num)
        # What a cell gives a step in each stage, as far as known: a reward, 0, or hope.
        self.promises = np.broadcast_to(self.optimism[:, None, None], (num, environment.num_stages, NUM_CELLS)).copy()
        if environment.num_stages > 1:
            self.promises[:, -1] = 0  # the last reward has been had
        self.meanings = MEANINGS[:1] if environment.actions_are_moves else MEANINGS
        self.possible = np.ones((num, len(self.meanings)), bool)

    def act(self, places: np.ndarray, stages: np.ndarray, *, left: int) -> np.ndarray:
        """A cell at distance d is stood on for left - d + 1 steps, the present one for `left`. Nearer ones break ties, then chance."""
        distances = DISTANCE[places]
        stays = np.clip(left + 1 - np.maximum(distances, 1), 0, None)
        values = self.promises[self.rows, stages] * stays - 1e-3 * distances + self.rng.uniform(0, 5e-4, distances.shape)
        return self._action_for(move_towards(places, values.argmax(1), self.rng))

    def _action_for(self, moves: np.ndarray) -> np.ndarray:
        if len(self.meanings) == 1:
            return moves
        says_so = self.meanings == moves[:, None, None]
        support = (says_so & self.possible[..., None]).sum(1)
        return (support + self.rng.uniform(0, 0.5, support.shape)).argmax(1)

    def see(
        self, places: np.ndarray, stages: np.ndarray, actions: np.ndarray, rewards: np.ndarray, reached: np.ndarray
    ) -> None:
        self.promises[self.rows, stages, reached] = rewards > 0
        if len(self.meanings) > 1:
            self.possible &= NEXT[places[:, None], self.meanings[:, actions].T] == reached[:, None]

    def end_episode(self) -> None:
        """It learns at every step, and has nothing to add."""
