"""Pictures for people: a picture with lines of text below it. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

FONT, SCALE, LINE = cv2.FONT_HERSHEY_SIMPLEX, 0.45, 20
LEAST_SIDE, MOST_SIDE = 320, 640
INK, PAPER = (40, 40, 40), 255


def captioned(picture: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """`picture` (uint8 [height, width, 3], RGB) `enlarged`, in BGR, with the lines below it, broken where they are too long."""
    shown = enlarged(picture)
    width = max(shown.shape[1], LEAST_SIDE)
    broken = [part for line in lines for part in _broken(line, width - 12)]
    page = np.full((shown.shape[0] + LINE * len(broken) + 10, width, 3), PAPER, np.uint8)
    page[: shown.shape[0], : shown.shape[1]] = shown
    for place, part in enumerate(broken):
        where = (6, shown.shape[0] + LINE * (place + 1) - 2)
        cv2.putText(page, part, where, FONT, SCALE, INK, 1, cv2.LINE_AA)
    return page


def enlarged(picture: np.ndarray) -> np.ndarray:
    """`picture` (uint8 [height, width, 3], RGB) in BGR: a small one enlarged by a whole factor, so that it can be seen, a
    large one reduced."""
    picture = picture[..., ::-1]
    longer = max(picture.shape[:2])
    scale = -(-LEAST_SIDE // longer) if longer < LEAST_SIDE else min(1.0, MOST_SIDE / longer)
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA)


def _broken(line: str, width: int) -> list[str]:
    """The line's words in lines that are no wider than `width` pixels; what OpenCV's font lacks becomes a question mark."""
    rows = [""]
    for word in line.encode("ascii", "replace").decode().split():
        longer = f"{rows[-1]} {word}".strip()
        if rows[-1] and cv2.getTextSize(longer, FONT, SCALE, 1)[0][0] > width:
            rows.append(word)
        else:
            rows[-1] = longer
    return rows
