"""The noisy optimum: knows the task, and acts by it in a growing share of its steps. It shows getting better without learning."""

from __future__ import annotations

import numpy as np

from workloads.algorithm_distillation.environments.room import Room, move_towards
from workloads.algorithm_distillation.sources.source import ANYTHING


class NoisyOptimum:
    """From chance in the first episode to the optimum in the last, in equal paces (Zisman et al. 2023, arXiv 2312.12275).

    There is no discovery in it to be distilled: it is there to compare with.
    """

    def __init__(self, environment: type[Room], tasks: np.ndarray, rng: np.random.Generator, *, episodes: int) -> None:
        self.rng, self.rows = rng, np.arange(len(tasks))
        self.targets = environment.targets(tasks)
        self.actions = environment.meanings(tasks).argsort(1)  # the action that makes each move
        self.noise, self.pace = 1.0, 1 / max(episodes - 1, 1)

    def act(self, places: np.ndarray, stages: np.ndarray, *, left: int) -> np.ndarray:
        best = self.actions[self.rows, move_towards(places, self.targets[self.rows, stages], self.rng)]
        return np.where(self.rng.random(len(places)) < self.noise, ANYTHING, best)

    def see(
        self, places: np.ndarray, stages: np.ndarray, actions: np.ndarray, rewards: np.ndarray, reached: np.ndarray
    ) -> None:
        """It knows all there is to know."""

    def end_episode(self) -> None:
        self.noise = max(0.0, self.noise - self.pace)
