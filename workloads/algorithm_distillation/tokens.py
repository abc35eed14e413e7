"""What the model sees of a moment: seven small numbers, the same for recorded histories and for rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from contracts.workload import Facts
from workloads.algorithm_distillation.environments import ENVIRONMENTS
from workloads.algorithm_distillation.environments.room import NUM_ACTIONS, SIZE
from workloads.algorithm_distillation.moments import ACTION, PLACE, RANDOM, REWARD

# x and y now and a step before, the action and the reward between (as one number), the step in the episode, the episode.
FIELDS = ("x", "y", "x before", "y before", "action and reward", "step", "episode")
STEP = FIELDS.index("step")
IGNORED = -100
NOWHERE = SIZE  # the coordinate before an episode's first moment


@dataclass(frozen=True)
class Vocabulary:
    """How many values each number of a token takes."""

    num_rewards: int
    horizon: int
    episodes: int

    @classmethod
    def of(cls, facts: Facts) -> Self:
        kind = ENVIRONMENTS[facts["environment"]]
        return cls(kind.num_rewards, kind.horizon, facts["episodes"])

    @property
    def sizes(self) -> tuple[int, ...]:
        return (SIZE, SIZE, SIZE + 1, SIZE + 1, NUM_ACTIONS * self.num_rewards + 1, self.horizon + 1, self.episodes)

    @property
    def nothing(self) -> int:
        """The number of "no action and no reward yet"."""
        return NUM_ACTIONS * self.num_rewards

    @property
    def length(self) -> int:
        """Tokens of a whole history."""
        return self.episodes * (self.horizon + 1)


def tokens_of(histories: np.ndarray, vocabulary: Vocabulary, *, first: int = 0) -> np.ndarray:
    """Tokens int16 [histories, episodes, horizon + 1, 7] of histories uint8 [histories, episodes, horizon + 1, 4], which begin
    with the episode number `first`."""
    moments = histories.astype(np.int16)
    x, y = np.divmod(moments[..., PLACE], SIZE)
    tokens = np.empty((*moments.shape[:3], len(FIELDS)), np.int16)
    tokens[..., 0], tokens[..., 1] = x, y
    tokens[:, :, 0, 2:4], tokens[:, :, 0, 4] = NOWHERE, vocabulary.nothing
    tokens[:, :, 1:, 2], tokens[:, :, 1:, 3] = x[:, :, :-1], y[:, :, :-1]
    tokens[:, :, 1:, 4] = moments[:, :, :-1, ACTION] * vocabulary.num_rewards + moments[:, :, 1:, REWARD]
    tokens[..., 5] = np.arange(moments.shape[2])
    tokens[..., 6] = first + np.arange(moments.shape[1])[:, None]
    return tokens


def labels_of(histories: np.ndarray) -> np.ndarray:
    """The action taken at each moment, int64 [histories, episodes, horizon + 1]; IGNORED where it was made at random, and in
    the last moment, which has none."""
    labels = np.where(histories[..., RANDOM] > 0, IGNORED, histories[..., ACTION].astype(np.int64))
    labels[:, :, -1] = IGNORED
    return labels
