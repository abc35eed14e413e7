"""Tabular Q-learning that is optimistic about what it has not tried, and replays all it has seen after every episode."""

from __future__ import annotations

import numpy as np

from workloads.algorithm_distillation.environments.room import NUM_ACTIONS, NUM_CELLS, Room

# What is not tried is worth more than the goal seen from its neighbour, 1 / (1 - DISCOUNT^2), so that all is tried near by, and
# less than the goal seen from afar, DISCOUNT^7 / (1 - DISCOUNT), so that it is not left again.
DISCOUNT, HOPE = 0.95, 11.0
NUM_SWEEPS = 10


class QLearning:
    """Greedy, ties by chance; steps are deterministic, so the learning rate is 1 and a table of transitions is the replay."""

    def __init__(self, environment: type[Room], tasks: np.ndarray, rng: np.random.Generator, *, episodes: int) -> None:
        shape = (len(tasks), environment.num_stages * NUM_CELLS, NUM_ACTIONS)
        self.rng, self.rows, self.last_stage = rng, np.arange(len(tasks)), environment.num_stages - 1
        self.values = np.full(shape, HOPE, np.float32)
        self.tried = np.zeros(shape, bool)
        self.rewards = np.zeros(shape, np.float32)
        self.next = np.zeros(shape, np.int32)

    def act(self, places: np.ndarray, stages: np.ndarray, *, left: int) -> np.ndarray:
        values = self.values[self.rows, stages * NUM_CELLS + places]
        return (values + self.rng.uniform(0, 1e-4, values.shape)).argmax(1)

    def see(
        self, places: np.ndarray, stages: np.ndarray, actions: np.ndarray, rewards: np.ndarray, reached: np.ndarray
    ) -> None:
        state = stages * NUM_CELLS + places
        # Where there is more than one stage, each reward leads to the next one.
        after = np.minimum(stages + rewards, self.last_stage) * NUM_CELLS + reached
        at = (self.rows, state, actions)
        self.tried[at], self.rewards[at], self.next[at] = True, rewards, after
        self.values[at] = rewards + DISCOUNT * self.values[self.rows, after].max(1)

    def end_episode(self) -> None:
        """Replay: every transition ever made, so many times."""
        for _ in range(NUM_SWEEPS):
            best = self.values.max(2)
            worth = self.rewards + DISCOUNT * best[self.rows[:, None, None], self.next]
            self.values = np.where(self.tried, worth, self.values)
