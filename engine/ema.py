"""An exponential moving average of the weights: what is evaluated and shipped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from engine.backends.single import Single
from engine.parts import Part, put


class Average:
    """Averages this rank's pieces of the weights; the decay grows to its full value over the first steps.

    With a decay of 0 the average is the living weights themselves, and costs nothing.
    """

    def __init__(self, weights: Mapping[str, Part], *, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self._live = dict(weights)
        self.parts = {name: part.like(part.piece.clone()) for name, part in weights.items()} if decay else self._live

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step."""
        self.num_updates += 1
        if not self.decay:
            return
        decay = min(self.decay, self.num_updates / (self.num_updates + 9))
        moving = [name for name, part in self.parts.items() if part.piece.is_floating_point()]
        averages, live = ([parts[name].piece for name in moving] for parts in (self.parts, self._live))
        torch._foreach_lerp_(averages, live, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for name, part in self.parts.items():
            if not part.piece.is_floating_point():
                part.piece.copy_(self._live[name].piece)

    def state(self, backend: Single) -> dict[str, Any]:
        """Whole tensors, to be loaded anywhere; without any where they are the weights."""
        return {"num_updates": self.num_updates, "tensors": backend.whole(self.parts) if self.decay else {}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.num_updates = state["num_updates"]
        if self.decay:
            put(self.parts, state["tensors"], what="the checkpoint's average")
