"""A small SigLIP encoder that has learnt to see: which digit, in which colour, small or not, in each part of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from contracts.progress import track
from workloads.captioning.base.learning import learn
from workloads.captioning.phrases import COLOURS, DIGITS
from workloads.captioning.scenes import CELL, CELLS, SIZE, crowded_scenes
from workloads.captioning.writing import write_model

WIDTH, LAYERS, HEADS = 160, 2, 4
NUM_PICTURES, BATCH = 24_000, 64
LEARNING_RATE, WARMUP = 1.5e-3, 100
# The weights of what is learnt about each part: its digit, its colour, whether it is small, whether anything is there.
PARTS = {"digit": 1.0, "colour": 0.3, "small": 0.3, "there": 0.3}


@dataclass(frozen=True)
class Crowd:
    """Pictures uint8 [n, SIZE, SIZE, 3] RGB and, for each of their cells, digit and colour (int64 [n, cells], -100 where the
    cell is empty) and `small` (float32, 0 or 1)."""

    pictures: torch.Tensor
    digits: torch.Tensor
    colours: torch.Tensor
    small: torch.Tensor

    @classmethod
    def drawn(cls, split: str, num: int, seed: int) -> Crowd:
        """`num` crowded pictures in the handwriting of a split."""
        pictures = np.zeros((num, SIZE, SIZE, 3), np.uint8)
        labels = np.full((2, num, CELLS * CELLS), -100, np.int64)
        small = np.zeros((num, CELLS * CELLS), np.float32)
        scenes = crowded_scenes(split, seed)
        for index in track(range(num), "drawing pictures for the base encoder"):
            pictures[index], scene = next(scenes)
            for one in scene:
                cell = one.cell[0] * CELLS + one.cell[1]
                labels[:, index, cell] = DIGITS.index(one.thing.digit), COLOURS.index(one.thing.colour)
                small[index, cell] = one.thing.small
        return cls(*(torch.from_numpy(value) for value in (pictures, *labels, small)))

    def take(self, rows: torch.Tensor) -> Crowd:
        return Crowd(self.pictures[rows], self.digits[rows], self.colours[rows], self.small[rows])


class Seeing(nn.Module):
    """The encoder with one linear layer that reads from each of its tokens what its part of the picture holds."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import SiglipVisionConfig, SiglipVisionModel

        config = SiglipVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            image_size=SIZE,
            patch_size=CELL,
            vision_use_head=False,
        )
        self.encoder = SiglipVisionModel(config)
        self.reading = nn.Linear(WIDTH, len(DIGITS) + len(COLOURS) + 2)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of digit, colour, small, there for each part."""
        pixels = (pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()
        read = self.reading(self.encoder(pixel_values=pixels).last_hidden_state)
        digits, colours, small, there = read.split([len(DIGITS), len(COLOURS), 1, 1], dim=-1)
        return digits, colours, small[..., 0], there[..., 0]

    def loss(self, crowd: Crowd) -> torch.Tensor:
        digits, colours, small, there = self(crowd.pictures)
        known = crowd.digits >= 0
        return (
            PARTS["digit"] * functional.cross_entropy(digits.flatten(0, 1), crowd.digits.flatten())
            + PARTS["colour"] * functional.cross_entropy(colours.flatten(0, 1), crowd.colours.flatten())
            + PARTS["small"] * functional.binary_cross_entropy_with_logits(small[known], crowd.small[known])
            + PARTS["there"] * functional.binary_cross_entropy_with_logits(there, known.float())
        )

    @torch.no_grad()
    def right(self, crowd: Crowd) -> dict[str, float]:
        """The share of what is there that is seen right."""
        digits, colours, small, _ = self(crowd.pictures)
        known = crowd.digits >= 0
        right = {
            "digit": digits.argmax(-1) == crowd.digits,
            "colour": colours.argmax(-1) == crowd.colours,
            "small": (small > 0) == (crowd.small > 0),
        }
        return {name: float(value[known].float().mean()) for name, value in right.items()}


def train(folder: Path, steps: int) -> dict[str, float]:
    """Train the encoder and write it to `folder` with the processor that its pictures need; gives what share it sees of what."""
    from transformers import SiglipImageProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    num = min(NUM_PICTURES, steps * BATCH)
    crowd, unseen = Crowd.drawn("train", num, 0), Crowd.drawn("val", 300, 1)
    seeing = Seeing()
    learn(
        seeing,
        lambda: seeing.loss(crowd.take(torch.randint(num, (BATCH,)))),
        steps=steps,
        rate=LEARNING_RATE,
        warmup=WARMUP,
        title="training the base encoder",
    )
    right = seeing.eval().right(unseen)
    told = ", ".join(f"{name} {share:.1%}" for name, share in right.items())
    print(f"base encoder: of unseen handwriting it sees {told}", flush=True)
    write_model(seeing.encoder, folder)
    size = {"height": SIZE, "width": SIZE}
    SiglipImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return right
