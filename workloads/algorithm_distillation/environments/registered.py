"""The environments for Gymnasium, where that is installed. Importing this module makes them known to it:
slipway/Darkroom-v0, slipway/DarkroomPermuted-v0, slipway/DarkKeyToDoor-v0.

Gymnasium itself imports what stands before the colon: `gymnasium.make(f"{this module}:slipway/Darkroom-v0", task=(8, 8))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from workloads.algorithm_distillation.environments import ENVIRONMENTS
from workloads.algorithm_distillation.environments.room import NUM_ACTIONS, SIZE, coordinates


class GymnasiumRoom(gymnasium.Env[np.ndarray, np.int64]):
    """One room as Gymnasium knows environments: (x, y) is observed, and an episode is truncated at the horizon.

    Without a `task` every episode draws one.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, environment: str, task: Sequence[int] | None = None) -> None:
        self.kind = ENVIRONMENTS[environment]
        self.task = None if task is None else self.kind.task_of(task)
        self.observation_space = spaces.Box(0, SIZE - 1, (2,), np.int64)
        self.action_space = spaces.Discrete(NUM_ACTIONS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        tasks = self.kind.tasks()
        task = tasks[self.np_random.integers(len(tasks))] if self.task is None else self.task
        self.room, self.steps = self.kind(task[None]), 0
        return coordinates(self.room.places)[0], {"task": task}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        places, rewards = self.room.step(np.array([action]))
        self.steps += 1
        return coordinates(places)[0], float(rewards[0]), False, self.steps >= self.kind.horizon, {}


def register() -> None:
    """Make them known to Gymnasium, those that are not."""
    for name, kind in ENVIRONMENTS.items():
        known = f"slipway/{kind.__name__}-v0"
        if known not in gymnasium.registry:
            place = f"{GymnasiumRoom.__module__}:{GymnasiumRoom.__name__}"
            gymnasium.register(known, entry_point=place, kwargs={"environment": name})


register()
