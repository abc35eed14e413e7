"""Drawn results as files of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts.errors import SlipwayError

if TYPE_CHECKING:
    from contracts.workload import Prediction


def drawn(result: Prediction, suffix: str) -> bytes:
    """A result drawn, in the format that `suffix` names, in lower case with the dot.

    Raises:
        SlipwayError: when OpenCV cannot write it so.
    """
    import cv2

    picture = result.draw()
    good, data = cv2.imencode(suffix, picture, [] if suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 92])
    if not good:
        size = f"{picture.shape[1]} x {picture.shape[0]}"
        raise SlipwayError(f"the result for {result.name}, {size} pixels, could not be encoded as {suffix}")
    return data.tobytes()
