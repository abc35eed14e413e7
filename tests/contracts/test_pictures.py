"""How a picture is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from contracts.pictures import write_picture


def test_a_picture_is_kept_as_it_is_and_one_that_moves_frame_by_frame(tmp_path: Path) -> None:
    frames = np.zeros((5, 40, 30, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[number : number + 4, 3:9] = (250, 120 + number, 10)  # BGR
    write_picture(tmp_path / "one.png", frames[2])
    with Image.open(tmp_path / "one.png") as opened:
        assert np.array_equal(np.array(opened)[..., ::-1], frames[2])
    write_picture(tmp_path / "all.gif", frames)
    with Image.open(tmp_path / "all.gif") as opened:
        assert opened.n_frames == 5  # pyright: ignore[reportAttributeAccessIssue]
        assert opened.info["duration"] > 0
        opened.seek(4)
        assert np.abs(np.array(opened.convert("RGB"))[..., ::-1].astype(int) - frames[4]).max() <= 8
