"""What an algorithm must do for its learning to be recorded: act in many rooms at once, and learn from what comes of it."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from workloads.algorithm_distillation.environments.room import Room

# What an algorithm wants to do where it leaves that to chance.
ANYTHING = -1


class Source(Protocol):
    """So many learners at once, each with a task of its own that it does not know."""

    def __init__(self, environment: type[Room], tasks: np.ndarray, rng: np.random.Generator, *, episodes: int) -> None:
        """`tasks` [learners, numbers] are for sources that are meant to know them; `environment` says what all may know.
        They will learn for so many `episodes`."""
        ...

    def act(self, places: np.ndarray, stages: np.ndarray, *, left: int) -> np.ndarray:
        """What each learner wants to do, int64 [learners], on these cells and in these stages, with `left` steps to go; ANYTHING
        for a step that is to be made at random, and marked as such."""
        ...

    def see(
        self, places: np.ndarray, stages: np.ndarray, actions: np.ndarray, rewards: np.ndarray, reached: np.ndarray
    ) -> None:
        """What came of actions, which need not be those that it wanted: a step may have been made at random."""
        ...

    def end_episode(self) -> None:
        """The episode is over in every room."""
        ...
