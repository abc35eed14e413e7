"""Pictures for people: where an agent went, episode by episode. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from contracts.workload import Facts
from workloads.algorithm_distillation.environments.room import SIZE, cell, coordinates
from workloads.algorithm_distillation.moments import PLACE, REWARD, returns

CELL, MARGIN, TITLE = 16, 10, 22
PAPER, LINE, INK, SEEN, GOAL, KEY, AGENT = (
    (255, 255, 255),
    (226, 222, 218),
    (60, 45, 35),
    (244, 226, 205),
    (80, 170, 60),
    (40, 170, 235),
    (200, 100, 50),
)
FONT = cv2.FONT_HERSHEY_SIMPLEX
NUM_SHOWN = 6


def picture(history: np.ndarray, task: np.ndarray, facts: Facts) -> np.ndarray:
    """The first episodes and the last of a history uint8 [episodes, horizon + 1, 4], as a row of rooms; BGR."""
    found = returns(history)
    titles = {one: f"episode {one + 1}: {found[one]}" for one in shown_of(len(history))}
    return np.concatenate([room(history[one, :, PLACE], marks(task, facts), title) for one, title in titles.items()], axis=1)


def film(history: np.ndarray, task: np.ndarray, facts: Facts) -> np.ndarray:
    """The same episodes one after another, as frames [frames, height, width, 3]: a way grows step by step."""
    frames = []
    for one in shown_of(len(history)):
        so_far = history[one, :, REWARD].cumsum()
        for step in range(history.shape[1]):
            title = f"episode {one + 1}: {so_far[step]}"
            frames.append(room(history[one, : step + 1, PLACE], marks(task, facts), title))
    return np.stack(frames)


def shown_of(num: int) -> list[int]:
    """The episodes that are drawn, of so many: the first ones and the last."""
    return [*range(min(NUM_SHOWN - 1, num - 1)), num - 1]


def marks(task: np.ndarray, facts: Facts) -> list[tuple[int, tuple[int, int, int]]]:
    """The cells that are rewarded, with their colours."""
    if facts["environment"] == "darkroom_permuted":
        return [(SIZE * SIZE - 1, GOAL)]
    cells = [int(cell(*pair)) for pair in task.reshape(-1, 2)]
    return [(cells[-1], GOAL)] if len(cells) == 1 else [(cells[-1], GOAL), (cells[0], KEY)]


def room(places: np.ndarray, rewarded: Sequence[tuple[int, tuple[int, int, int]]], title: str) -> np.ndarray:
    """A room with the way through it: cells stood on, what is rewarded, the agent where it is now."""
    side = SIZE * CELL + 2 * MARGIN
    canvas = np.full((side + TITLE, side, 3), PAPER, np.uint8)
    cv2.putText(canvas, title, (MARGIN, TITLE - 4), FONT, 0.42, INK, 1, cv2.LINE_AA)
    for number in range(SIZE * SIZE):
        corner = corner_of(number)
        inside = SEEN if number in places else PAPER
        cv2.rectangle(canvas, corner, (corner[0] + CELL, corner[1] + CELL), inside, -1)
    for number, colour in rewarded:
        corner = corner_of(number)
        cv2.rectangle(canvas, (corner[0] + 2, corner[1] + 2), (corner[0] + CELL - 2, corner[1] + CELL - 2), colour, -1)
    for line in range(SIZE + 1):
        at = MARGIN + line * CELL
        cv2.line(canvas, (at, TITLE + MARGIN), (at, TITLE + MARGIN + SIZE * CELL), LINE, 1)
        cv2.line(canvas, (MARGIN, TITLE + at), (MARGIN + SIZE * CELL, TITLE + at), LINE, 1)
    way = np.array([middle_of(int(place)) for place in places], np.int32)
    cv2.polylines(canvas, [way], False, INK, 1, cv2.LINE_AA)
    cv2.circle(canvas, tuple(way[-1].tolist()), CELL // 3, AGENT, -1, cv2.LINE_AA)
    return canvas


def corner_of(number: int) -> tuple[int, int]:
    """The upper left pixel of a cell: x to the right, y upwards."""
    x, y = coordinates(np.array(number)).tolist()
    return MARGIN + x * CELL, TITLE + MARGIN + (SIZE - 1 - y) * CELL


def middle_of(number: int) -> tuple[int, int]:
    left, top = corner_of(number)
    return left + CELL // 2, top + CELL // 2
