"""How a picture of any size becomes the square that the network sees, and how places in the square lead back. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

PAD_VALUE = 114


@dataclass(frozen=True)
class Letterbox:
    """Where a picture of `width` x `height` lies in a square of `size`: at `left`, `top`, as `inner_width` x `inner_height`.

    The same rule, to the pixel, as Ultralytics' LetterBox: one ratio, each side rounded and at least 1, centred, an odd
    pixel of padding to the right and below.
    """

    width: int
    height: int
    size: int
    inner_width: int
    inner_height: int
    left: int
    top: int

    @classmethod
    def fit(cls, width: int, height: int, size: int) -> Letterbox:
        """The place of a picture of that width and height, in pixels."""
        ratio = min(size / height, size / width)
        inner_width, inner_height = max(round(width * ratio), 1), max(round(height * ratio), 1)
        left, top = round((size - inner_width) / 2 - 0.1), round((size - inner_height) / 2 - 0.1)
        return cls(width, height, size, inner_width, inner_height, left, top)

    @property
    def ratio(self) -> tuple[float, float]:
        """Pixels of the square for a pixel of the picture, along x and y; they differ by the rounding of the sides."""
        return self.inner_width / self.width, self.inner_height / self.height

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The picture uint8 [height, width, 3] in its square uint8 [size, size, 3], bilinear, grey around it."""
        if (self.inner_height, self.inner_width) != image.shape[:2]:
            image = cv2.resize(image, (self.inner_width, self.inner_height), interpolation=cv2.INTER_LINEAR)
        square = np.full((self.size, self.size, 3), PAD_VALUE, np.uint8)
        square[self.top : self.top + self.inner_height, self.left : self.left + self.inner_width] = image
        return square

    def to_square(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] (x, y) of the picture, in pixels of the square."""
        return points * np.array(self.ratio) + (self.left, self.top)

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] (x, y) of the square, in pixels of the picture, moved to its edge where they lie outside."""
        return np.clip((points - (self.left, self.top)) / np.array(self.ratio), 0, (self.width, self.height))
