"""A dark room: a grid in which one sees nothing but one's own place; what is rewarded is the task, and has to be found out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from numbers import Integral
from typing import Any, ClassVar

import numpy as np

from contracts.errors import SlipwayError

SIZE = 9
NUM_CELLS = SIZE * SIZE
# +x, -x, +y, -y, stay.
MOVES = np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)])
NUM_ACTIONS = len(MOVES)
STAY = 4


def cell(x: int | np.ndarray, y: int | np.ndarray) -> np.ndarray:
    """The number, 0 to 80, of the cell at (x, y)."""
    return np.asarray(x) * SIZE + np.asarray(y)


def coordinates(cells: np.ndarray) -> np.ndarray:
    """(x, y) of cells, with one more axis."""
    return np.stack(np.divmod(cells, SIZE), axis=-1)


def _table_of_moves() -> np.ndarray:
    reached = np.clip(coordinates(np.arange(NUM_CELLS))[:, None] + MOVES, 0, SIZE - 1)
    return cell(reached[..., 0], reached[..., 1])


# The cell reached from a cell by a move, int64 [81, 5]: the walls hold one back.
NEXT = _table_of_moves()
# Steps between two cells, [81, 81].
DISTANCE = np.abs(coordinates(np.arange(NUM_CELLS))[:, None] - coordinates(np.arange(NUM_CELLS))).sum(-1)


def move_towards(places: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of MOVES on a shortest way from cells to cells, one of the two at random where there are two."""
    ahead = coordinates(targets) - coordinates(places)
    useful = (MOVES * np.sign(ahead)[:, None]).sum(-1) > 0
    useful[:, STAY] = ~useful.any(1)
    return np.where(useful, rng.random(useful.shape), -1.0).argmax(1)


class Room(ABC):
    """As many rooms at once as there are tasks; each holds an agent. Every episode takes `horizon` steps.

    `num_stages` counts the situations in an episode that an agent can tell by the rewards it has had, and that decide what is
    rewarded next; `num_rewards` is one more than the largest reward of a step. `start` is a cell. Where actions are not moves,
    the task says which move each makes.
    """

    name: ClassVar[str]
    horizon: ClassVar[int]
    start: ClassVar[int]
    num_stages: ClassVar[int] = 1
    num_rewards: ClassVar[int] = 2
    actions_are_moves: ClassVar[bool] = True

    def __init__(self, tasks: np.ndarray) -> None:
        """`tasks`: integers [rooms, numbers of a task], rows of `tasks()`."""
        self.task = np.asarray(tasks, dtype=np.int64)
        self.num, self.meaning = len(self.task), self.meanings(self.task)
        self.reset()

    @classmethod
    @abstractmethod
    def tasks(cls) -> np.ndarray:
        """All tasks, int64 [number, numbers of a task], in an order that never changes."""

    @classmethod
    def task_of(cls, numbers: Any) -> np.ndarray:
        """A task as others write it, int64 [numbers of a task].

        Raises:
            SlipwayError: when it is none of `tasks()`. Nothing is rounded, and a cell outside is not taken for another one.
        """
        known = cls.tasks()
        told = list(numbers) if isinstance(numbers, list | tuple | np.ndarray) else []
        whole = all(isinstance(one, Integral) and not isinstance(one, bool) for one in told)
        if whole and len(told) == known.shape[1] and (known == told).all(1).any():
            return np.array(told, dtype=np.int64)
        raise SlipwayError(f"{told or numbers} is no task of {cls.name}; {known[-1].tolist()} is one")

    @classmethod
    @abstractmethod
    def optimum(cls, tasks: np.ndarray) -> np.ndarray:
        """The best return of an episode, int64, for one who knows the task."""

    @classmethod
    @abstractmethod
    def difficulty(cls, tasks: np.ndarray) -> np.ndarray:
        """What splits are balanced by, int64; the larger, the harder: how far away what is rewarded lies."""

    @classmethod
    @abstractmethod
    def targets(cls, tasks: np.ndarray) -> np.ndarray:
        """The cell that is rewarded in each stage, int64 [n, stages]: what only the task tells."""

    @classmethod
    def meanings(cls, tasks: np.ndarray) -> np.ndarray:
        """The move that each action makes, int64 [n, 5]."""
        return np.broadcast_to(np.arange(NUM_ACTIONS), (len(tasks), NUM_ACTIONS))

    def reset(self) -> np.ndarray:
        """Begin an episode in every room; gives the cells the agents stand on, int64 [rooms]."""
        self.places = np.full(self.num, self.start)
        self.stages = np.zeros(self.num, np.int64)
        return self.places

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Let every agent do something; gives the cells reached and the rewards, both int64 [rooms]."""
        self.places = NEXT[self.places, self.meaning[np.arange(self.num), actions]]
        return self.places, self.reward()

    @abstractmethod
    def reward(self) -> np.ndarray:
        """The rewards for where the agents now stand; moves `stages` on."""
