"""The bytes of a learning history: what each moment holds, and the arrays they are kept in."""

from __future__ import annotations

import numpy as np

# What the bytes of a moment are: the cell stood on, the reward that came with it, the action taken then, and whether that
# action was made at random. The last moment of an episode shows where it ended, and has no action.
PLACE, REWARD, ACTION, RANDOM = range(4)
NUM_FIELDS = 4


def empty(num: int, *, episodes: int, horizon: int) -> np.ndarray:
    """Room for `num` histories, uint8 [histories, episodes, horizon + 1, 4]."""
    return np.zeros((num, episodes, horizon + 1, NUM_FIELDS), np.uint8)


def returns(histories: np.ndarray) -> np.ndarray:
    """The return of each episode, int64 [histories, episodes]."""
    return histories[..., REWARD].sum(-1, dtype=np.int64)
